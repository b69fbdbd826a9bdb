"""
Loading the engine of an artifact through the handler code that it ships.

What answers here is what answers in the container: verify and serve run `model.py`
of the artifact, never a copy of its logic. Its bytes are hashed before they are
executed, and the bytes that were hashed are the ones that run.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.abc import InspectLoader
from typing import TYPE_CHECKING, Any, Protocol, cast

from lmi_build.digest import digest_bytes
from lmi_build.errors import LmiBuildError, ToolMissing, Unsupported, VerifyFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import CodeType, ModuleType

    import numpy as np
    import numpy.typing as npt

    from lmi_build.values.manifest import Manifest

_HANDLER_NAME = "model.py"
_REQUIREMENTS_NAME = "requirements.txt"
# Names that different systems give the same processor.
# The same modules without kernels for GPUs: with them an engine for CUDA is tried where
# it was built, on CPUs.
_ON_CPUS = {
    "onnxruntime-gpu": "onnxruntime",
    "onnxruntime-genai-cuda": "onnxruntime-genai",
}
_SAME_MACHINE = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}


class Step(Protocol):
    """One generated token; `finish_reason` is None until the last."""

    token_id: int
    text: str
    logprob: float | None
    finish_reason: str | None


class Engine(Protocol):
    """What every handler's `Engine` class offers."""

    @property
    def bounds(self) -> Any:
        """The promised bounds."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt of a conversation."""

    def stream(
        self, prompt_ids: Sequence[int], parameters: Mapping[str, Any]
    ) -> Iterator[Step]:
        """Generate token by token."""

    def generate(
        self, inputs: str | Sequence[str], parameters: Mapping[str, Any]
    ) -> Any:
        """Answer whole prompts."""

    def lines(
        self, inputs: str, parameters: Mapping[str, Any]
    ) -> Iterator[Mapping[str, Any]]:
        """LMI's streamed answer, one object for each token."""

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Float32 logits, one row for each position: `[T, V]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """
    An engine, ready, with the exceptions that its handler raises.

    Args:
        engine: The handler's engine.
        bound_exceeded: Raised for a request over the bounds.
        invalid_request: Raised for any other request that makes no sense.
        module: The handler itself.
        drift: `package==version` pins that differ from what is installed here.
    """

    engine: Engine
    bound_exceeded: type[ValueError]
    invalid_request: type[ValueError]
    module: ModuleType
    drift: tuple[str, ...]


class _HashedLoader(InspectLoader):
    """Executes source that is already in memory."""

    def __init__(self, source: bytes, path: str) -> None:
        self._source = source
        self._path = path

    def get_source(self, fullname: str) -> str:
        del fullname
        return self._source.decode()

    def get_code(self, fullname: str) -> CodeType:
        del fullname
        return self.source_to_code(self._source, self._path)

    def is_package(self, fullname: str) -> bool:
        del fullname
        return False


def load_engine(root: Path, manifest: Manifest) -> Loaded:
    """
    Load an artifact's engine in this process.

    Args:
        root: The artifact.
        manifest: Its manifest, already checked.

    Raises:
        Unsupported: `package.wrong-architecture`, `package.wrong-machine`.
        ToolMissing: `package.runtime-missing`, `package.wrong-version`.
        VerifyFailed: `verify.file-changed`, `package.handler-broken`,
            `package.engine-broken`.
    """
    _check_machine(manifest)
    drift = _check_requirements(root, manifest.compatibility)
    module = _load_module(root, manifest)
    try:
        make = cast("Callable[[Path], Engine]", module.Engine)
        engine = make(root)
        return Loaded(
            engine=engine,
            bound_exceeded=module.BoundExceeded,
            invalid_request=module.InvalidRequest,
            module=module,
            drift=drift,
        )
    except LmiBuildError:
        raise
    except Exception as error:
        # Artifacts of before have no such class.
        misfit: Any = getattr(module, "EngineMisfit", None)
        if misfit is not None and isinstance(error, misfit):
            raise Unsupported(
                error.message,
                code="package.wrong-machine",
                hints=(error.fix,),
            ) from error
        versions = (f"it runs on other versions here: {', '.join(drift)}",)
        raise VerifyFailed(
            f"the engine does not load: {type(error).__name__}: {error}",
            code="package.engine-broken",
            hints=(
                "run `lmi-build verify` on the artifact, or build it again",
                *(versions if drift else ()),
            ),
        ) from error


def _check_machine(manifest: Manifest) -> None:
    here = platform.machine().lower()
    here = _SAME_MACHINE.get(here, here)
    wanted = manifest.compatibility.get("architecture")
    if wanted != here:
        raise Unsupported(
            f"the artifact is for {wanted}, this machine is {here}",
            code="package.wrong-architecture",
            hints=(f"run it on a {wanted} machine, or build it for {here}",),
        )


def _check_requirements(root: Path, bound: Mapping[str, Any]) -> tuple[str, ...]:
    """
    Refuse a pinned package that is missing, or another version of one that binds.

    A package binds when `compatibility` of the manifest has its version: compiled code
    calls into it. Others may move, and whether they can is left to their own loader.

    Returns:
        The other pins that differ.
    """
    differing: list[str] = []
    wrong: list[str] = []
    pins: list[str] = []
    missing: list[str] = []
    for line in (root / _REQUIREMENTS_NAME).read_text("utf-8").splitlines():
        name, _, wanted = line.strip().partition("==")
        if not name or name.startswith("#"):
            continue
        found, twin = _installed(name)
        if not found:
            missing.append(line.strip())
            continue
        if twin:
            differing.append(f"{twin} {found} (artifact: {name} {wanted})")
            continue
        # As pip reads it: `2.13.0` is met by `2.13.0+cpu`.
        if wanted not in {"", found, found.partition("+")[0]}:
            told = f"{name} {found} (artifact: {wanted})"
            if name in bound:
                wrong.append(told)
                pins.append(line.strip())
            else:
                differing.append(told)
    if missing:
        raise ToolMissing(
            f"the engine needs {', '.join(missing)}, which is not installed here",
            code="package.runtime-missing",
            hints=("pip install " + " ".join(f"'{line}'" for line in missing),),
        )
    if wrong:
        raise ToolMissing(
            f"the engine was compiled for another version: here is {', '.join(wrong)}",
            code="package.wrong-version",
            hints=(
                "pip install " + " ".join(f"'{line}'" for line in pins),
                "build the artifact again with what is installed here",
            ),
        )
    return tuple(differing)


def _installed(name: str) -> tuple[str, str]:
    """The version that is here, and the name of the twin that it is of, if of one."""
    for found in (name, _ON_CPUS.get(name, name)):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(found), "" if found == name else found
    return "", ""


def _load_module(root: Path, manifest: Manifest) -> ModuleType:
    path = root / _HANDLER_NAME
    source = path.read_bytes()
    found = digest_bytes(source)
    wanted = next((f.digest for f in manifest.files if f.path == _HANDLER_NAME), None)
    if found != wanted:
        raise VerifyFailed(
            f"{_HANDLER_NAME} is {found}, the manifest says {wanted}",
            code="verify.file-changed",
            hints=("fetch or build the artifact again; its code was not run",),
        )
    name = f"lmi_build_artifact_{found.removeprefix('sha256:')[:12]}"
    loader = _HashedLoader(source, str(path))
    spec = importlib.util.spec_from_loader(name, loader, origin=str(path))
    if spec is None:
        raise AssertionError("a loader was given")
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    # Dataclasses look their module up by name while it runs.
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise VerifyFailed(
            f"{_HANDLER_NAME} does not run: {type(error).__name__}: {error}",
            code="package.handler-broken",
            hints=("build the artifact again with this version of lmi-build",),
        ) from error
    return module

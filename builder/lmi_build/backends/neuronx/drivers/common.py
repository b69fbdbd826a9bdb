"""Parts that every driver has; Python 3.8 and the standard library."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

MARK = "LMI-BUILD "
RECORD = "neuron.json"
SCHEMA = "lmi-build/neuron/v1"
LOADERS = ("tnx", "optimum", "nxdi", "trace")
STATUS_RAISED, STATUS_WORDS, STATUS_FAULT = 1, 2, 3
# A name that only the real package has, by distribution: a package of the same name
# from elsewhere may be installed and hold nothing.
SYMBOLS = {
    "neuronx-cc": ("neuronxcc", "__version__"),
    "libneuronxla": ("libneuronxla", "neuron_xla_compile"),
    "torch": ("torch", "nn"),
    "torch-neuronx": ("torch_neuronx", "__version__"),
    "transformers": ("transformers", "AutoConfig"),
    "transformers-neuronx": ("transformers_neuronx", "NeuronAutoModelForCausalLM"),
    "optimum-neuron": ("optimum.neuron", "NeuronModelForCausalLM"),
    "neuronx-distributed": ("neuronx_distributed", "parallel_layers"),
    "neuronx-distributed-inference": (
        "neuronx_distributed_inference.models.config",
        "NeuronConfig",
    ),
}
# Classes that a call may make, by the beginning of their dotted path.
FACTORIES = (
    "transformers_neuronx.config.",
    "neuronx_distributed_inference.",
    "optimum.neuron.",
)
# Values that it may name, as a factory without arguments.
VALUES = ("torch.float32", "torch.float16", "torch.bfloat16")


class Fault(Exception):
    """What the user must hear; `kind` is `tool`, `unsupported` or `failed`."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        kind: str = "failed",
        hints: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.kind = kind
        self.hints = list(hints)


class Session:
    """One build: what was asked, and where it goes."""

    def __init__(self, asked: Mapping[str, Any], result: str) -> None:
        self.call: dict[str, Any] = asked["call"]
        self.model = str(asked["model"])
        self.device = bool(asked["device"])
        self.versions: dict[str, str] = asked["versions"]
        self.block: dict[str, Any] | None = asked["block"]
        self.workdir = str(asked["workdir"])
        self.result = str(Path(result).resolve())
        self.record: dict[str, Any] = {}

    def make(self, value: Any) -> Any:
        """Plain values with each `{"factory": ..., "arguments": ...}` made."""
        if isinstance(value, dict):
            if set(value) == {"factory", "arguments"}:
                return self._made(value["factory"], value["arguments"])
            if set(value) == {"path"}:
                return self.path(value["path"])
            return {name: self.make(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.make(inner) for inner in value]
        return value

    def _made(self, factory: str, arguments: Mapping[str, Any]) -> Any:
        if factory in VALUES:
            return symbol(factory)
        found = symbol(factory) if factory.startswith(FACTORIES) else None
        if not inspect.isclass(found):
            raise Fault(
                "neuronx.call-refused", f"`{factory}` is nothing that a call may make"
            )
        check_arguments(found, arguments, what=factory)
        return found(**{name: self.make(inner) for name, inner in arguments.items()})

    def path(self, name: str) -> str:
        """A path under the result whose folder exists afterwards."""
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise Fault("neuronx.call-refused", f"the path `{name}` leaves the result")
        found = Path(self.result) / name
        found.parent.mkdir(parents=True, exist_ok=True)
        return str(found)

    def keep(self, name: str, value: Any) -> None:
        """Write a value into the record."""
        self.record[name] = plain(value)

    def graph(self) -> None:
        """One graph is compiled; a forked process may say it."""
        say("graph", total=self.call["num_graphs"])


def say(event: str, **values: Any) -> None:
    """One line for the worker, in one write so that processes do not mix."""
    text = MARK + json.dumps({"event": event, **values}, sort_keys=True) + "\n"
    sys.stdout.flush()
    os.write(1, text.encode("utf-8"))


def symbol(path: str) -> Any:
    """The object of a dotted path."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise Fault(
            "neuronx.call-refused",
            f"the toolchain has no `{path}`: {error}",
            kind="tool",
        ) from error


def check_arguments(
    function: Callable[..., Any],
    names: Iterable[str],
    *,
    what: str,
    known: Iterable[str] = (),
) -> None:
    """
    Refuse names that a function does not have itself.

    Many constructors end in `**kwargs` and drop what they do not know, so that a wrong
    name compiles another model without a word.

    A function that names no argument of its own reads them all from `**kwargs` and is
    left to judge for itself.

    Args:
        function: A function or class.
        names: Names of arguments.
        what: What messages call it.
        known: Names it takes through `**kwargs` and reads.
    """
    target = function.__init__ if inspect.isclass(function) else function
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(target).parameters
    own = {name for name, found in parameters.items() if found.kind in kinds}
    unknown = sorted(set(names) - own - set(known))
    if unknown and own - {"self"}:
        raise Fault(
            "neuronx.swallowed-argument",
            f"`{what}` has no argument {', '.join(f'`{name}`' for name in unknown)}"
            " and would drop it without a word",
        )


def plain(value: Any) -> Any:
    """A value as JSON has it; objects become their attributes, enums their value."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return getattr(value, "value", value)
    if isinstance(value, dict):
        return {str(plain(name)): plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, range)):
        return [plain(inner) for inner in value]
    if hasattr(value, "value") and hasattr(type(value), "__members__"):
        return plain(value.value)
    if hasattr(value, "__dict__") and not hasattr(value, "__call__"):  # noqa: B004
        return {name: plain(inner) for name, inner in vars(value).items()}
    return str(value)


def installed(names: Iterable[str]) -> dict[str, str]:
    """Versions of distributions; empty for what is absent."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def probe(names: Sequence[str]) -> dict[str, Any]:
    """What is installed here: versions, errors of imports, missing symbols."""
    errors, missing = {}, []
    for name in names:
        module, attribute = SYMBOLS[name]
        try:
            if not hasattr(importlib.import_module(module), attribute):
                missing.append(name)
        except Exception as error:  # noqa: BLE001 - whatever a broken library raises
            errors[name] = f"{type(error).__name__}: {error}"
    return {
        "versions": installed(names),
        "errors": errors,
        "missing_symbols": missing,
        "compiler": shutil.which("neuronx-cc") or "",
        "libraries": missing_libraries(),
        "prefix": prefix(),
        "python": ".".join(map(str, sys.version_info[:2])),
    }


def prefix() -> str:
    """Where libraries lie: names of compiled graphs may depend on it."""
    found = importlib.util.find_spec("torch_neuronx")
    if found is None or not found.origin:
        return sysconfig.get_paths()["purelib"]
    return str(Path(found.origin).parent.parent)


def missing_libraries() -> list[str]:
    """System libraries that a program of the compiler needs and that are absent."""
    try:
        found = importlib.util.find_spec("neuronxcc")
    except (ImportError, ValueError):
        return []
    ldd = shutil.which("ldd")
    if found is None or not found.origin or ldd is None:
        return []
    program = Path(found.origin).parent / "starfish" / "bin" / "walrus_driver"
    if not program.is_file():
        return []
    answer = subprocess.run(
        [ldd, str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    lines = answer.stdout.decode("utf-8", "replace").splitlines()
    return [line.split()[0] for line in lines if "not found" in line and line.split()]


def same_version(wanted: str, found: str) -> bool:
    """Whether two versions are one, but for what stands after a `+`."""
    return wanted.partition("+")[0] == found.partition("+")[0]


def check_versions(wanted: Mapping[str, str]) -> dict[str, str]:
    """Versions that answer, each of them the one that is wanted."""
    found = installed(wanted)
    wrong = [
        f"{name} {found[name] or 'absent'} for {version}"
        for name, version in sorted(wanted.items())
        if version and not same_version(version, found[name])
    ]
    if wrong:
        raise Fault(
            "neuronx.wrong-version",
            "the toolchain is another one than the release's: " + "; ".join(wrong),
            kind="tool",
        )
    for name in wanted:
        module, attribute = SYMBOLS.get(name, ("", ""))
        if module and not hasattr(importlib.import_module(module), attribute):
            raise Fault(
                "neuronx.stub",
                f"{name} {found[name]} has no `{module}.{attribute}`: it is a"
                " placeholder without a library",
                kind="tool",
            )
    return found


def set_environment(values: Mapping[str, str]) -> None:
    """Set the call's variables; a module that is loaded already would not see them."""
    early = [name for name in ("torch_neuronx", "neuronxcc") if name in sys.modules]
    if early:
        raise Fault("neuronx.call-refused", f"{early} was imported before its settings")
    os.environ.update(values)


def build(path: str, result: str) -> None:
    """Carry out a call and write its record."""
    started = time.monotonic()
    asked = json.loads(Path(path).read_text("utf-8"))
    session = Session(asked, result)
    loader = session.call["loader"]
    if loader not in LOADERS:
        raise Fault("neuronx.call-refused", f"`{loader}` is no loader")
    set_environment(session.call["environment"])
    module = importlib.import_module("." + loader, __package__)
    os.chdir(session.workdir)
    session.keep("versions", check_versions(session.versions))
    session.keep("cwd", str(Path.cwd()))
    session.keep("prefix", prefix())
    module.build(session)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    session.keep("peak_rss_bytes", max(own, children) * 1024)
    session.keep("seconds", round(time.monotonic() - started, 3))
    session.keep("schema", SCHEMA)
    text = json.dumps(session.record, indent=2, sort_keys=True) + "\n"
    Path(session.path(RECORD)).write_text(text, "utf-8")


def main(words: Sequence[str]) -> int:
    """The command's words; returns its exit status."""
    if words[:1] == ["probe"]:
        say("toolchain", **probe([name for name in words[1:] if name in SYMBOLS]))
        return 0
    if words[:1] != ["build"] or len(words) != len(("build", "CALL", "RESULT")):
        sys.stderr.write("usage: DRIVER probe NAME... | DRIVER build CALL RESULT\n")
        return STATUS_WORDS
    try:
        build(words[1], words[2])
    except Fault as fault:
        say(
            "fault",
            kind=fault.kind,
            code=fault.code,
            message=fault.message,
            hints=fault.hints,
        )
        return STATUS_FAULT
    except Exception as error:  # noqa: BLE001 - whatever a toolchain raises
        traceback.print_exc()
        text = f"the toolchain raised {type(error).__name__}: {error}"
        say("fault", kind="failed", code="neuronx.raised", message=text, hints=[])
        return STATUS_RAISED
    say("done")
    return 0

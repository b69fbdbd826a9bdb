"""Which TensorRT-LLM answers, and whether it is the one that is wanted."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.errors import ToolMissing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.spi import Answer

# PyPI's `tensorrt-llm` is a source package of 1.6 kB whose build fetches the wheel from
# NVIDIA's own index; what is left of it where that failed has metadata and no module.
_STUB = re.compile(r"wheel_stub|pypi\.nvidia\.com|InstallFailedError")
# What is asked of the toolchain's Python: it must import, and say its versions.
PROBE = """\
import importlib.metadata as m, importlib.util, json, shutil
found = {"trtllm_build": shutil.which("trtllm-build") or ""}
try:
    import tensorrt_llm
    found["trtllm"] = getattr(tensorrt_llm, "__version__", "")
    build = importlib.util.find_spec("tensorrt_llm.commands.build")
    found["symbols"] = hasattr(tensorrt_llm, "Mapping") and build is not None
    import tensorrt
    found["tensorrt"] = tensorrt.__version__
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
try:
    found["distribution"] = m.version("tensorrt-llm")
except m.PackageNotFoundError:
    found["distribution"] = ""
print("LMI-BUILD " + json.dumps(found))
"""
_MARK = "LMI-BUILD "
_NOT_RUN = (125, 126, 127)


@dataclass(frozen=True, kw_only=True, slots=True)
class Toolchain:
    """
    The TensorRT-LLM that answered.

    Args:
        trtllm: Its version.
        tensorrt: Version of TensorRT.
        trtllm_build: Where `trtllm-build` lies.
    """

    trtllm: str
    tensorrt: str
    trtllm_build: str


def check_toolchain(answer: Answer, wanted: str, *, where: str) -> Toolchain:
    """
    The TensorRT-LLM that answered `PROBE`.

    Args:
        answer: What the probe printed.
        wanted: The version it must have.
        where: What messages call the toolchain.

    Raises:
        ToolMissing: `trtllm.absent`, `trtllm.stub`, `trtllm.broken`,
            `trtllm.wrong-version` or `trtllm.no-builder`.
    """
    found = _found(answer)
    code, fault, hint = _fault(found, answer, wanted, where)
    if found is None or code:
        get = (
            f"use the image of the release, or install TensorRT-LLM {wanted}"
            " from https://pypi.nvidia.com"
        )
        raise ToolMissing(fault, code=code, hints=tuple(filter(None, (hint, get))))
    return Toolchain(
        trtllm=str(found["trtllm"]),
        tensorrt=str(found.get("tensorrt", "")),
        trtllm_build=str(found["trtllm_build"]),
    )


def _fault(
    found: Mapping[str, object] | None, answer: Answer, wanted: str, where: str
) -> tuple[str, str, str]:
    """Code, message and hint of what is wrong with a toolchain; empty for nothing."""
    if found is None:
        said = answer.output.strip().splitlines()[-1:] or ["nothing"]
        words = f"{where} did not answer (exit status {answer.status}): {said[0]}"
        # Docker's own statuses: it found no image, or no Python in it.
        pull = answer.status in _NOT_RUN and where.startswith("the image")
        hint = "log in to its registry and run `docker pull` first" if pull else ""
        return "trtllm.absent", words, hint
    error, version = str(found.get("error", "")), str(found.get("trtllm", ""))
    distribution = str(found.get("distribution", ""))
    builder = str(found.get("trtllm_build", ""))
    whole = found.get("symbols") is True
    absent = error.startswith("ModuleNotFoundError") and "'tensorrt_llm'" in error
    empty = not error and not whole and not builder
    name = f"TensorRT-LLM {distribution or version} in {where}"
    if (absent and distribution) or empty or _STUB.search(error):
        words = f"{name} is a placeholder without a library: PyPI has only that"
        return "trtllm.stub", words, ""
    if absent:
        return "trtllm.absent", f"{where} has no TensorRT-LLM: {error}", ""
    if error or not whole:
        words = f"{name} cannot be imported: {error or 'it lacks its own names'}"
        hint = "check driver and CUDA: `nvidia-smi` shows what the driver allows"
        return "trtllm.broken", words, hint
    if version != wanted:
        words = (
            f"the release has TensorRT-LLM {wanted}, {where} has {version}; it"
            " would not load the engine"
        )
        return "trtllm.wrong-version", words, ""
    if not builder:
        words = f"{name} has no `trtllm-build` on its PATH"
        return "trtllm.no-builder", words, "add the folder of its scripts to PATH"
    return "", "", ""


def same_as_far(known: str, found: str) -> bool:
    """
    Whether two versions agree as far as both go: `10.3` and `10.3.0.26` do.

    Args:
        known: What the catalogue says; empty agrees with everything.
        found: What is installed.
    """
    parts = zip(known.split("."), found.split("."), strict=False)
    return not known or all(one == other for one, other in parts)


def _found(answer: Answer) -> Mapping[str, object] | None:
    """What the probe says; libraries print around it."""
    for line in answer.output.splitlines():
        if line.startswith(_MARK):
            try:
                found = json.loads(line.removeprefix(_MARK))
            except ValueError:
                return None
            return found if isinstance(found, dict) else None
    return None

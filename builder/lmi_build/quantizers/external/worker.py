"""
A library's run, from the model's folder to a checkpoint like our own.

The worker runs in the toolchain's interpreter. It makes the token windows by our own
code, lays the model out as the library reads it, runs the driver in a process below
itself, then holds the result against the recipe (`normalize`). A library's run that
was finished is kept: a second attempt goes on behind it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.architectures import find_architecture
from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.digest import digest_json
from lmi_build.errors import DoesNotFit, StageFailed, ToolMissing, Unsupported
from lmi_build.events import StageNote
from lmi_build.quantizers.assemble import assemble
from lmi_build.quantizers.calibration_windows import read_windows
from lmi_build.quantizers.external.driver import Request
from lmi_build.quantizers.external.readable import make_readable
from lmi_build.quantizers.state import BlockState
from lmi_build.quantizers.targets import select
from lmi_build.values.quant import QuantScheme

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lmi_build.events import Emit
    from lmi_build.spi import Job

# Kept of a driver's output, and shown of it: a traceback may be long.
_KEPT_LINES, _TAIL_LINES = 200, 8
_TRACE = ("Traceback (most recent", "Current thread", "Thread 0x")
_MARKER = "toolchain.json"
_SIGKILL = -9
# Drivers of libraries that refuse to quantize without a GPU.
_CUDA_ONLY = frozenset({"auto-gptq"})


def run(job: Job, emit: Emit) -> None:
    """
    Quantize `job.inputs["model"]` into `job.out` by a library.

    Args:
        job: `params` as `Library.lower` made them.
        emit: Told what the library does otherwise, and when it runs.

    Raises:
        ToolMissing: `toolchain.moved`: the environment changed.
        StageFailed: `provider.crashed` or `provider.output`.
        SourceInvalid: The model or the calibration text is broken.
    """
    version = check_environment(job)
    for said in _list(job.settings.get("notes")):
        emit(_note(job, "provider.option", str(said), level="warning"))
    native = job.state / "native"
    done = job.state / "native.done"
    if not done.exists():
        emit(_note(job, "provider.running", f"running {version}"))
        for path in (native, job.state / "offload"):
            shutil.rmtree(path, ignore_errors=True)
        native.mkdir(parents=True)
        _run_library(job, emit, native, version)
        done.touch()
    try:
        _take_over(job, native)
    except StageFailed:
        # What is wrong once may be right when it is made again.
        done.unlink()
        raise


def _list(value: Any) -> list[Any]:
    return list(value or ())


def _note(job: Job, code: str, message: str, *, level: str = "info") -> StageNote:
    return StageNote(stage=job.stage, level=level, code=code, message=message)


def check_environment(job: Job) -> str:
    """
    Hold the environment against what it said when it was installed.

    Returns:
        The library and its version, for messages.

    Raises:
        ToolMissing: `toolchain.moved`.
        Unsupported: `provider.device`.
    """
    provider = str(job.params["provider"])
    path = Path(sys.prefix) / _MARKER
    try:
        document = json.loads(path.read_bytes())
        pinned: dict[str, str] = document["pins"]
    except (OSError, ValueError, KeyError) as error:
        raise ToolMissing(
            f"`{sys.prefix}` is not a toolchain's environment: {error!r}",
            code="toolchain.moved",
            hints=(f"run `lmi-build toolchain install {provider}`",),
        ) from error
    for name, wanted in pinned.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "none"
        if found.partition("+")[0] != wanted:
            raise ToolMissing(
                f"the toolchain of `{provider}` has {name} {found} instead of {wanted}",
                code="toolchain.moved",
                hints=(
                    f"run `lmi-build toolchain remove {provider}`, then `install` it",
                ),
            )
    if provider in _CUDA_ONLY:
        import torch

        if not torch.cuda.is_available():
            raise Unsupported(
                f"`{provider}` quantizes on a CUDA device only, and there is none",
                code="provider.device",
                hints=("use the provider `gptqmodel` or `builtin`",),
            )
    versions = ", ".join(f"{name} {version}" for name, version in pinned.items())
    return f"{provider} ({versions})"


def _run_library(job: Job, emit: Emit, native: Path, version: str) -> None:
    params: Any = job.params
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        model.mkdir()
        major = int(metadata.version("transformers").partition(".")[0])
        make_readable(job.inputs["model"], model, major=major)
        windows: list[list[int]] = []
        if "calibration" in params:
            readable = replace(job, inputs={**job.inputs, "model": model})
            windows = read_windows(readable, emit)
        # Where the bytes hang on the number it is in the key; else the launcher's.
        threads = params.get("threads") or os.environ.get("OMP_NUM_THREADS")
        request = Path(folder) / "request.json"
        Request(
            model=model,
            out=native,
            options=params["native"],
            windows=tuple(tuple(window) for window in windows),
            threads=int(threads or len(os.sched_getaffinity(0))),
        ).save(request)
        status, tail = _run_driver(params["driver"], request)
    if status == _SIGKILL:
        raise DoesNotFit(
            f"{version} was killed (SIGKILL), most likely for want of memory",
            code="stage.killed",
            hints=("use a larger machine, or the provider `builtin`, which streams",),
        )
    if status:
        how = f"signal {-status}" if status < 0 else f"status {status}"
        raise StageFailed(
            f"{version} ended with {how}\n" + "\n".join(f"  | {line}" for line in tail),
            code="provider.crashed",
            hints=("the log has the whole story", "try the provider `builtin`"),
        )


def _run_driver(module: str, request: Path) -> tuple[int, list[str]]:
    """Run a driver; its output goes to the log, and its last lines come back."""
    tail: deque[str] = deque(maxlen=_KEPT_LINES)
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-m", module, str(request)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None  # noqa: S101 - asked for above
    with process.stdout:
        for line in process.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            text = line.decode("utf-8", "replace").rstrip()
            # Progress bars write one line over and over.
            tail.append(text.rpartition("\r")[2])
    return process.wait(), last_words(tail)


def last_words(lines: Iterable[str]) -> list[str]:
    """The end of a log without the frames of tracebacks, which the log file has."""
    told: list[str] = []
    inside = False
    for line in lines:
        if line.startswith(_TRACE):
            inside = True
        elif not (inside and (not line.strip() or line.startswith(" "))):
            inside = False
            if line.strip():
                told.append(line)
    return told[-_TAIL_LINES:]


def _take_over(job: Job, native: Path) -> None:
    import torch

    from lmi_build.quantizers.external.normalize import normalize

    params: Any = job.params
    model = job.inputs["model"]
    config = json.loads((model / "config.json").read_bytes())
    with torch.inference_mode(), CheckpointReader(model) as reader:
        shapes = {name: (e.dtype, e.shape) for name, e in reader.tensors.items()}
        linears = select(
            shapes,
            architecture=find_architecture(config),
            ignore=[str(pattern) for pattern in params["ignore"]],
        )
        state = BlockState(job.state / "blocks", identity=digest_json(params))
        normalize(
            native,
            reader,
            linears,
            state,
            scheme=QuantScheme(**params["scheme"]),
            method=params["method"],
        )
        assemble(job, reader, config, linears, state)

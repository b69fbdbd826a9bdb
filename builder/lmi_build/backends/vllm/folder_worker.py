"""
Lays a checkpoint out as the images load it, in a worker process.

No tensor changes: files of weights are shared with the checkpoint. What the image
would stumble over is left out or named as its libraries expect.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from lmi_build.backends.vllm.documents import served_config
from lmi_build.checkpoint.ledger import LEDGER_NAME
from lmi_build.errors import SourceInvalid
from lmi_build.events import StageProgress
from lmi_build.store import files

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.events import Emit
    from lmi_build.spi import Job

ENTRY = "lmi_build.backends.vllm.folder_worker:run"
# Bumped when the worker writes other bytes for the same parameters.
SALT = 1
_CONFIG = "config.json"
_WEIGHTS = ".safetensors"
# Weights of other libraries, which would be uploaded for nothing or loaded instead.
_FOREIGN = frozenset({".bin", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth"})
_OURS = frozenset({LEDGER_NAME, "coverage.json"})


def run(job: Job, emit: Emit) -> None:
    """
    Fill `job.out` with the folder.

    Raises:
        SourceInvalid: `checkpoint.format`: no configuration, or no safetensors.
    """
    source = job.inputs["checkpoint"]
    config = _read_config(source)
    taken = [path for path in sorted(source.rglob("*")) if _is_taken(path, source)]
    if not any(path.suffix == _WEIGHTS for path in taken):
        raise _broken("it has no `.safetensors` file")
    for done, path in enumerate(taken, start=1):
        _lay(path, job.out / path.relative_to(source))
        emit(StageProgress(stage=job.stage, done=done, total=len(taken), unit="files"))
    served = served_config(config, older=bool(job.params["older"]))
    if served == config:
        _lay(source / _CONFIG, job.out / _CONFIG)
        return
    text = json.dumps(served, indent=2, sort_keys=True) + "\n"
    (job.out / _CONFIG).write_text(text, "utf-8")


def _is_taken(path: Path, source: Path) -> bool:
    name = path.relative_to(source).as_posix()
    skipped = path.suffix in _FOREIGN or name in _OURS or name == _CONFIG
    return path.is_file() and not skipped


def _lay(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == _WEIGHTS:
        files.place(path.resolve(strict=True), to)
    else:
        shutil.copyfile(path, to)


def _read_config(source: Path) -> dict[str, Any]:
    try:
        config = json.loads((source / _CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise _broken(f"its {_CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise _broken(f"its {_CONFIG} holds no object")
    return config


def _broken(reason: str) -> SourceInvalid:
    return SourceInvalid(
        f"the checkpoint cannot be laid out for vLLM: {reason}",
        code="checkpoint.format",
        hints=("run `lmi-build cache verify`, then build again",),
    )

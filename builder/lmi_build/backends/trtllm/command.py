"""
Commands of an engine build as lists of words, never as text for a shell.

Everything runs in one folder with fixed names in it, so that a command is the same on
every machine and the engine's `config.json`, which quotes its options, holds no path of
the machine that built it:

    checkpoint/  engine/  cache/  and for NVIDIA's converter  source/  examples/

A container sees the same folder as `WORK`.

Engines come from `trtllm-build` in every release, also where the LMI image itself calls
`tensorrt_llm.llmapi.LLM(...).save()` (0.33): that script quantizes with a calibration
of its own, takes options as words of a properties file, drops those it does not know
and needs as many GPUs as ranks. `LLM(FOLDER)` loads what either of them wrote, as it
looks only for `pretrained_config` and `build_config` in the folder's config.json.

Sources: djl-serving 0.33.0-dlc serving/docker/partition/trt_llm_partition.py;
TensorRT-LLM 0.16 llmapi/llm_utils.py and 2025 llmapi/llm_args.py `get_model_format`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.conversion import CHECKPOINT, EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmi_build.backends.trtllm.arguments import Build
    from lmi_build.backends.trtllm.conversion import Conversion
    from lmi_build.catalog.trtllm_flags import Flag

ENGINE, CACHE = "engine", "cache"
WORK = "/work"
TIMING_CACHE = f"{CACHE}/timing.cache"
# Shared memory of ranks that talk to each other; Docker's default is 64 MB.
SHM_SIZE = "16g"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mount:
    """
    One folder of the host as a container sees it.

    Args:
        source: Absolute path on the host.
        target: Absolute path in the container.
        writable: Whether the container may write there.
    """

    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """
    Where a command runs when not on this machine's own Python.

    Args:
        image: `REPOSITORY@sha256:...` where the digest is known, else with a tag.
        mounts: What it sees.
        user: `UID:GID` that owns what it writes.
        gpus: `all`, or indices separated by commas.
        environment: Variables it gets; nothing of the host's is passed on.
        name: Its name, by which it can be ended.
    """

    image: str
    mounts: tuple[Mount, ...]
    user: str
    gpus: str = "all"
    environment: Mapping[str, str] = field(default_factory=dict)
    name: str = ""


def trtllm_build(build: Build, flags: Mapping[str, Flag], *, workers: int) -> list[str]:
    """
    The words of one `trtllm-build`.

    Args:
        build: What it builds.
        flags: The release's options.
        workers: Ranks built at once, a GPU each.
    """
    words = ["trtllm-build"]
    words += ["--checkpoint_dir", _inside(CHECKPOINT, build.checkpoint)]
    words += ["--output_dir", _inside(ENGINE, build.engine)]
    words += build.arguments
    for name in ("input_timing_cache", "output_timing_cache", "timing_cache"):
        if name in flags:
            words += [f"--{name}", TIMING_CACHE]
    return [*words, "--workers", str(workers)]


def convert_checkpoint(
    conversion: Conversion, *, workers: int, python: str = "python3"
) -> list[str]:
    """
    The words of NVIDIA's converter.

    Args:
        conversion: What it is told.
        workers: Ranks converted at once; each holds its weights in memory.
        python: Interpreter of the toolchain.
    """
    place = conversion.script.removeprefix("examples/")
    words = [python, f"{EXAMPLES}/{place}", *conversion.arguments]
    return [*words, "--workers", str(workers)] if conversion.parallel else words


def docker_run(container: Container, command: Sequence[str]) -> list[str]:
    """
    The same command in a container.

    Args:
        container: Image, mounts, user and GPUs.
        command: Program and its words; the program replaces the image's entry point,
            which would start a server.

    Raises:
        ValueError: A path cannot be written as a mount.
    """
    words = ["docker", "run", "--rm", "--init"]
    if container.name:
        words += ["--name", container.name]
    gpus = container.gpus
    words += ["--gpus", gpus if gpus == "all" else f'"device={gpus}"']
    words += ["--shm-size", SHM_SIZE]
    # CUDA pins host memory, and threads of the builder have deep stacks.
    words += ["--ulimit", "memlock=-1", "--ulimit", "stack=67108864"]
    words += ["--user", container.user, "--workdir", WORK]
    for mount in container.mounts:
        words += ["--mount", _mount(mount)]
    for name, value in sorted(container.environment.items()):
        words += ["--env", f"{name}={value}"]
    program, *arguments = command
    return [*words, "--entrypoint", program, container.image, *arguments]


def environment(home: str) -> dict[str, str]:
    """
    Variables of a build, the same everywhere.

    Args:
        home: A folder it may write to: caches of libraries go there, not to the
            user's home, which a container does not have.
    """
    return {
        "HOME": home,
        "TMPDIR": home,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # A container does not know the name of the user that it runs as, and torch
        # asks for it.
        "USER": "lmi-build",
        "LOGNAME": "lmi-build",
    }


def _inside(folder: str, part: str) -> str:
    return f"{folder}/{part}" if part else folder


def _mount(mount: Mount) -> str:
    """`--mount` in its CSV, where a comma or a quote in a path would begin a field."""
    for path in (mount.source, mount.target):
        if not path.startswith("/") or any(char in path for char in ',"\n'):
            raise ValueError(f"`{path}` cannot be mounted: no absolute plain path")
    words = f"type=bind,source={mount.source},target={mount.target}"
    return words if mount.writable else f"{words},readonly"

"""Containers that a toolchain's commands run in: `docker run` as a list of words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Where a container sees the folder that commands run in.
WORK = "/work"
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
        gpus: `all`, or indices separated by commas; empty for none.
        devices: Device files it may open, such as `/dev/neuron0`.
        environment: Variables it gets; nothing of the host's is passed on.
        name: Its name, by which it can be ended.
        workdir: Where its command runs.
    """

    image: str
    mounts: tuple[Mount, ...]
    user: str
    gpus: str = ""
    devices: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    workdir: str = WORK


def docker_run(container: Container, command: Sequence[str]) -> list[str]:
    """
    The same command in a container.

    Args:
        container: Image, mounts, user and devices.
        command: Program and its words; the program replaces the image's entry point,
            which would start a server.

    Raises:
        ValueError: A path cannot be written as a mount.
    """
    words = ["docker", "run", "--rm", "--init"]
    if container.name:
        words += ["--name", container.name]
    gpus = container.gpus
    if gpus:
        words += ["--gpus", gpus if gpus == "all" else f'"device={gpus}"']
    for device in container.devices:
        words += ["--device", device]
    words += ["--shm-size", SHM_SIZE]
    # Drivers pin host memory, and threads of compilers have deep stacks.
    words += ["--ulimit", "memlock=-1", "--ulimit", "stack=67108864"]
    words += ["--user", container.user, "--workdir", container.workdir]
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


def _mount(mount: Mount) -> str:
    """`--mount` in its CSV, where a comma or a quote in a path would begin a field."""
    for path in (mount.source, mount.target):
        if not path.startswith("/") or any(char in path for char in ',"\n'):
            raise ValueError(f"`{path}` cannot be mounted: no absolute plain path")
    words = f"type=bind,source={mount.source},target={mount.target}"
    return words if mount.writable else f"{words},readonly"

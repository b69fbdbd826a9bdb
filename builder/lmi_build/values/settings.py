"""
What the user's environment says, read in one place.

No other module reads an environment variable. Secrets are kept apart, have no
`repr`, and reach only the stages that ask for them by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.errors import UsageInvalid
from lmi_build.text import join_words
from lmi_build.units import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RUNNERS = ("local", "container")
# What a lock beside a recipe is used for: followed where it fits; held against what is
# so now; or the only thing that is asked.
FOLLOW, LOCKED, FROZEN = "follow", "locked", "frozen"
DEFAULT_HF_ENDPOINT = "https://huggingface.co"

# Handed to every worker: what a process needs to start, and nothing that names a
# person or a credential.
_WORKER_VARIABLES = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    # Which GPUs there are, and whose daemon starts containers.
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "DOCKER_CONFIG",
    "DOCKER_HOST",
    "OPAL_PREFIX",
)
# Seen only by stages that list `hub` or `aws` in `Stage.secrets`.
_SECRET_VARIABLES: Mapping[str, tuple[str, ...]] = {
    "hub": ("HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE"),
    "aws": (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL_SAGEMAKER",
        "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS",
        "AWS_CA_BUNDLE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        "AWS_ROLE_ARN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "HOME",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
    ),
}


_PLACES: Mapping[str, str] = {
    "image": "LMI_BUILD_IMAGE",
    "trtllm-examples": "LMI_BUILD_TRTLLM_EXAMPLES",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """
    The environment of one run.

    Args:
        cache_dir: Root of the store.
        store: `s3://bucket/prefix` of the shared store behind it; empty for none.
        store_kms_key_id: Key that encrypts what is written there; empty takes the
            bucket's own.
        hf_endpoint: Base URL of the model hub.
        offline: Whether the network may be used at all.
        threads: Threads of a worker; 0 takes every core this process may use.
        memory_bytes: Memory a worker may use; 0 takes what the machine has free.
        runner: Where stages run whose toolchain is a container's: `local`, when this
            is that container, or `container`.
        rehearse: Stages that need another machine write down what they would do.
        lock_mode: What locks of recipes are used for: `FOLLOW`, `LOCKED` or `FROZEN`.
        places: Names of this machine's that no key knows, such as the image of a
            container.
        toolchains_file: Toolchains of the user's own, over those that are shipped.
        worker_environment: Variables every worker gets.
        secrets: Group name to variables; never printed, logged or hashed.
        hidden_values: Further values that must never be shown.
    """

    cache_dir: Path
    store: str = ""
    store_kms_key_id: str = ""
    hf_endpoint: str = DEFAULT_HF_ENDPOINT
    offline: bool = False
    threads: int = 0
    memory_bytes: int = 0
    runner: str = "local"
    rehearse: bool = False
    lock_mode: str = FOLLOW
    places: Mapping[str, str] = field(default_factory=dict)
    toolchains_file: Path | None = None
    worker_environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    hidden_values: tuple[str, ...] = field(default=(), repr=False)

    @property
    def hf_token(self) -> str | None:
        """The hub's token, if the user has one."""
        return self.secrets.get("hub", {}).get("HF_TOKEN")

    def secret_values(self) -> tuple[str, ...]:
        """Every value that must never be shown, longest first."""
        names = {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
        names |= {"AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_ACCESS_KEY_ID"}
        found = {
            value
            for group in self.secrets.values()
            for name, value in group.items()
            if name in names and value
        } | set(self.hidden_values)
        return tuple(sorted(found, key=len, reverse=True))


def settings_from_environ(
    environ: Mapping[str, str],
    *,
    cache_dir: Path | None = None,
    store: str | None = None,
    offline: bool | None = None,
    memory_bytes: int | None = None,
) -> Settings:
    """
    Read the environment.

    Args:
        environ: Usually `os.environ`.
        cache_dir: Overrides `LMI_BUILD_CACHE`; by default `$XDG_CACHE_HOME/lmi-build`,
            else `~/.cache/lmi-build`.
        store: Overrides `LMI_BUILD_STORE`.
        offline: Overrides `LMI_BUILD_OFFLINE` and `HF_HUB_OFFLINE`.
        memory_bytes: Overrides `LMI_BUILD_MEMORY`.

    Raises:
        UsageInvalid: `usage.environment`: a variable is not a number or a size.
    """
    if cache_dir is None:
        base = environ.get("XDG_CACHE_HOME") or f"{environ.get('HOME', '~')}/.cache"
        cache_dir = Path(environ.get("LMI_BUILD_CACHE") or f"{base}/lmi-build")
    if offline is None:
        truthy = {"1", "true", "yes", "on"}
        flags = (
            environ.get("LMI_BUILD_OFFLINE", ""),
            environ.get("HF_HUB_OFFLINE", ""),
        )
        offline = any(flag.lower() in truthy for flag in flags)
    return Settings(
        cache_dir=cache_dir.expanduser().absolute(),
        store=store if store is not None else environ.get("LMI_BUILD_STORE") or "",
        store_kms_key_id=environ.get("LMI_BUILD_STORE_KMS_KEY_ID") or "",
        hf_endpoint=(environ.get("HF_ENDPOINT") or DEFAULT_HF_ENDPOINT).rstrip("/"),
        offline=offline,
        threads=_read(environ, "LMI_BUILD_THREADS", _count, "2"),
        memory_bytes=(
            memory_bytes
            if memory_bytes is not None
            else _read(environ, "LMI_BUILD_MEMORY", parse_bytes, "24GiB")
        ),
        runner=_runner(environ),
        places={
            place: environ[name] for place, name in _PLACES.items() if environ.get(name)
        },
        toolchains_file=_path(environ.get("LMI_BUILD_TOOLCHAINS")),
        worker_environment=_pick(environ, _WORKER_VARIABLES),
        secrets={
            name: _pick(environ, names) for name, names in _SECRET_VARIABLES.items()
        },
    )


def _runner(environ: Mapping[str, str]) -> str:
    runner = environ.get("LMI_BUILD_RUNNER") or "local"
    if runner not in RUNNERS:
        raise UsageInvalid(
            f"the environment variable LMI_BUILD_RUNNER is `{runner}`",
            code="usage.environment",
            hints=(f"use {join_words(RUNNERS)}",),
        )
    return runner


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser().absolute() if text else None


def _read(
    environ: Mapping[str, str], name: str, parse: Callable[[str], int], example: str
) -> int:
    """A variable's number; 0 where it is not set."""
    text = environ.get(name)
    if not text:
        return 0
    try:
        return parse(text)
    except ValueError as error:
        raise UsageInvalid(
            f"the environment variable {name} is `{text}`: {error}",
            code="usage.environment",
            hints=(f"set {name}={example}, or unset it",),
        ) from error


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("it is not a number")
    return int(text)


def _pick(environ: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: environ[name] for name in names if environ.get(name)}

"""Options that every command takes, and the state they make."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.values.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(kw_only=True)
class State:
    """
    What the user asked for on the command line, before and after the command's name.

    Args:
        environ: The environment, read once.
    """

    environ: Mapping[str, str]
    output: str = "text"
    offline: bool | None = None
    overrides: list[str] = field(default_factory=list)
    cache_dir: Path | None = None
    store: str | None = None
    memory: str | None = None
    runner: str | None = None
    rehearse: bool = False
    lock_mode: str | None = None
    no_color: bool = False
    quiet: bool = False
    verbose: bool = False
    debug: bool = False

    @property
    def color(self) -> bool:
        """Whether standard error may be coloured."""
        if self.no_color or self.environ.get("NO_COLOR"):
            return False
        return bool(self.environ.get("FORCE_COLOR")) or sys.stderr.isatty()

    @property
    def live(self) -> bool:
        """Whether a live display makes sense."""
        return (
            sys.stderr.isatty()
            and self.output != "jsonl"
            and not self.quiet
            and self.environ.get("TERM", "") != "dumb"
        )

    def settings(self) -> Settings:
        """The settings of this run."""
        from lmi_build.values.settings import settings_from_environ

        found = settings_from_environ(
            self.environ,
            cache_dir=self.cache_dir,
            store=self.store,
            offline=self.offline,
            memory_bytes=self._memory_bytes(),
        )
        runner = self.runner or found.runner
        return replace(
            found,
            rehearse=self.rehearse,
            runner=runner,
            lock_mode=self.lock_mode or found.lock_mode,
        )

    def _memory_bytes(self) -> int | None:
        """The size that `--memory` gave."""
        from lmi_build.errors import UsageInvalid
        from lmi_build.units import parse_bytes

        if self.memory is None:
            return None
        try:
            size = parse_bytes(self.memory)
        except ValueError as error:
            raise UsageInvalid(
                f"`--memory`: {error}",
                code="usage.invalid",
                hints=("write a size such as `--memory 24GiB`",),
            ) from error
        if size == 0:
            raise UsageInvalid(
                "`--memory` is 0",
                code="usage.invalid",
                hints=("write a size such as `--memory 24GiB`, or leave it out",),
            )
        return size


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Store an option that was given; what was not given changes nothing."""
    state = ctx.find_object(State)
    assert state is not None  # noqa: S101 - `run` made it
    if param.name == "overrides":
        state.overrides.extend(value or ())
    elif value not in {None, False}:
        setattr(state, str(param.name), value)


_COMMON = (
    click.option(
        "--output",
        type=click.Choice(["text", "json", "jsonl"]),
        default=None,
        help="Form of standard output; `jsonl` streams events.",
    ),
    click.option(
        "--offline", is_flag=True, default=None, help="Never use the network."
    ),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="PATH=VALUE",
        help="Override a recipe's value, such as `quantize.bits=8`.",
    ),
    click.option(
        "--cache-dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=None,
        help="Root of the store [default: ~/.cache/lmi-build].",
    ),
    click.option(
        "--store",
        metavar="URL",
        default=None,
        help="Shared store behind it, such as `s3://bucket/prefix` "
        "[default: $LMI_BUILD_STORE, or none].",
    ),
    click.option("--no-color", is_flag=True, default=None, help="Plain text."),
    click.option("-q", "--quiet", is_flag=True, default=None, help="Only errors."),
    click.option("-v", "--verbose", is_flag=True, default=None, help="More lines."),
    click.option("--debug", is_flag=True, default=None, help="Tracebacks."),
)


def _keep_mode(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Store what a recipe's lock is used for; two wishes at once are refused."""
    state = ctx.find_object(State)
    assert state is not None  # noqa: S101 - `run` made it
    if not value:
        return
    if state.lock_mode not in {None, param.name}:
        raise click.UsageError("give `--locked` or `--frozen`, not both", ctx)
    state.lock_mode = param.name


_LOCK = (
    click.option(
        "--locked",
        is_flag=True,
        expose_value=False,
        callback=_keep_mode,
        help="Look at everything anew; fail where the recipe's lock says otherwise.",
    ),
    click.option(
        "--frozen",
        is_flag=True,
        expose_value=False,
        callback=_keep_mode,
        help="Take what the recipe's lock says, and ask for nothing that moves.",
    ),
)


def with_lock_options(function: F) -> F:
    """Let a command say what the lock of its recipe is used for."""
    wrapped: Any = function
    for option in reversed(_LOCK):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


def with_common_options(function: F) -> F:
    """Let a command take the common options, before or after its own."""
    wrapped: Any = function
    for option in reversed(_COMMON):
        wrapped = option(wrapped)
    for param in wrapped.__click_params__:
        names = {"output", "offline", "overrides", "cache_dir", "store", "no_color"}
        if param.name in names | {"quiet", "verbose", "debug"}:
            param.expose_value = False
            param.callback = _keep
    return wrapped  # type: ignore[no-any-return]

"""
Every error a user can meet, as a tree of exceptions with stable codes.

```
LmiBuildError
 +-- RecipeInvalid      the recipe is wrong: every problem of it, at once       exit 2
 +-- UsageInvalid       the command line is wrong                               exit 2
 +-- Unsupported        no provider can do this combination                     exit 3
 +-- ToolMissing        a provider exists, its toolchain does not               exit 3
 +-- DoesNotFit         disk or memory is too small                             exit 4
 +-- GateFailed         the artifact works, its quality does not                exit 5
 +-- RemoteFailed       a hub, S3 or another server refused or vanished         exit 6
 +-- SourceInvalid      the model's own files are broken or refused             exit 1
 +-- StageFailed        a worker ended badly                                    exit 1
 +-- StoreCorrupt       bytes in the store are not what their name says         exit 1
 +-- StoreUnusable      the store cannot be read or written                     exit 1
 +-- VerifyFailed       the artifact is not what its manifest says              exit 1
 +-- PublishFailed      the destination holds something else                    exit 1
 `-- Interrupted        the user stopped it                                     exit 130
```

A code is a slug `room.fault`; `lmi-build explain CODE` documents it from
`catalog/errors/<room>.toml`, and a test holds the two together.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """
    A place in a text file, counted from one, as editors count.

    Args:
        file: Path as the user gave it.
        line: Line number, from 1.
        column: Column number, from 1.
        length: Characters to underline, at least 1.
        source: The text of that line, without its end of line.
    """

    file: str
    line: int
    column: int
    length: int = 1
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """
    One fault of the user's input, with the numbers, the place and the way out.

    Args:
        code: Stable slug, `room.fault`.
        message: What is wrong, lower case, no full stop.
        path: Dotted path in the recipe, such as `bounds.max_input_len`; may be empty.
        hint: A concrete fix; may be empty.
        span: Where it stands, when known.
        unsupported: The wish is sound, but nothing installed can do it.
    """

    code: str
    message: str
    path: str = ""
    hint: str = ""
    span: Span | None = None
    unsupported: bool = False


class LmiBuildError(Exception):
    """
    Base of every error meant for the user.

    Args:
        message: What is wrong, with numbers.
        code: Stable slug, `room.fault`.
        hints: Concrete ways out, best first.
        span: Where in a file, when there is a file.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        code: str,
        hints: tuple[str, ...] = (),
        span: Span | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hints = hints
        self.span = span


class RecipeInvalid(LmiBuildError):
    """
    The recipe cannot be built; `problems` holds every fault found, in file order.

    When all of them are sound wishes that nothing installed can do, the exit status
    is that of `Unsupported`.
    """

    exit_code = 2

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        if not problems:
            msg = "RecipeInvalid needs at least one problem"
            raise ValueError(msg)
        first = problems[0]
        super().__init__(
            first.message,
            code=first.code,
            hints=tuple(p.hint for p in problems if p.hint),
            span=first.span,
        )
        self.problems = problems
        if all(problem.unsupported for problem in problems):
            self.exit_code = Unsupported.exit_code


class UsageInvalid(LmiBuildError):
    """The command line asks for something that makes no sense."""

    exit_code = 2


class Unsupported(LmiBuildError):
    """No installed provider can do this combination."""

    exit_code = 3


class ToolMissing(LmiBuildError):
    """The provider is known, but what it drives is not installed here."""

    exit_code = 3


class DoesNotFit(LmiBuildError):
    """The machine or the target is too small; the message carries both numbers."""

    exit_code = 4


class GateFailed(LmiBuildError):
    """The artifact is whole, but a quality gate of the recipe is not met."""

    exit_code = 5


class RemoteFailed(LmiBuildError):
    """A remote service refused, failed or could not be reached."""

    exit_code = 6


class SourceInvalid(LmiBuildError):
    """A file of the model is missing, truncated, corrupt or refused."""


class StageFailed(LmiBuildError):
    """A worker process ended badly without a better explanation."""


class StoreCorrupt(LmiBuildError):
    """Stored bytes differ from the digest they are named by."""


class StoreUnusable(LmiBuildError):
    """The store cannot be read or written."""


class VerifyFailed(LmiBuildError):
    """An artifact differs from its manifest or breaks its promises."""


class PublishFailed(LmiBuildError):
    """The destination holds something else, or what arrived is not what was sent."""


class Interrupted(LmiBuildError):
    """The user stopped the work; everything finished so far is kept."""

    exit_code = 130


_BY_NAME: dict[str, type[LmiBuildError]] = {
    cls.__name__: cls
    for cls in (
        Unsupported,
        ToolMissing,
        DoesNotFit,
        GateFailed,
        RemoteFailed,
        SourceInvalid,
        StageFailed,
        StoreCorrupt,
        StoreUnusable,
        VerifyFailed,
        PublishFailed,
        Interrupted,
        UsageInvalid,
    )
}


# No space, over the quota, larger than the file system or `ulimit -f` allows.
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_disk_full(error: OSError) -> bool:
    """Whether a write failed for want of room."""
    return error.errno in _DISK_FULL


def error_to_json(error: LmiBuildError) -> dict[str, Any]:
    """Flatten an error so that it can cross a process boundary."""
    return {
        "kind": type(error).__name__,
        "code": error.code,
        "message": error.message,
        "hints": list(error.hints),
    }


def error_from_json(document: Mapping[str, Any]) -> LmiBuildError:
    """Rebuild the error a worker reported; unknown kinds become `StageFailed`."""
    cls = _BY_NAME.get(str(document.get("kind")), StageFailed)
    return cls(
        str(document.get("message", "")),
        code=str(document.get("code", "stage.failed")),
        hints=tuple(str(hint) for hint in document.get("hints", ())),
    )

"""
Which files of a data set repository calibrate, chosen by names and sizes alone.

| the recipe names | taken |
| --- | --- |
| a file | that file |
| a folder or a `*` pattern | its data files by name, until the budget is reached |
| nothing | the same, of one folder and one format: those of the train split |

Without a path, the shallowest folder that has data files of the train split is taken
(first by name), and in it the first of JSONL, Parquet, JSON, CSV, text.
A file belongs to the train split when `train` stands in its path as a word of its own;
where no file says so, files that name another split are left out.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lmi_build.errors import SourceInvalid
from lmi_build.values.dataset import DATASET_SUFFIXES, data_format

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TRAIN = re.compile(r"(?i)(?:^|[/._-])train(?:ing)?(?:[/._-]|$)")
_OTHER = re.compile(
    r"(?i)(?:^|[/._-])(?:test(?:ing)?|valid(?:ation)?|val|dev|eval(?:uation)?)"
    r"(?:[/._-]|$)"
)
_PREFERRED = ("jsonl", "parquet", "json", "csv", "text")
# Read-mes and indexes of a repository, which nobody trains on.
_PAPERS = re.compile(
    r"(?i)(?:readme|licen[sc]e|notice|citation|changelog|requirements|dataset_infos?"
    r"|dataset_dict|state|config|metadata)\.[a-z]+\Z"
)
# What a calibration token costs at the source: text is about 4 bytes a token, less
# when packed; rows carry other columns; and a draw from more than is needed is better.
_BYTES_PER_TOKEN = 64
_MIN_BYTES = 4 << 20
_MAX_SHOWN = 6


def byte_budget(num_tokens: int) -> int:
    """Bytes of files that surely hold `num_tokens` tokens to draw from."""
    return max(_MIN_BYTES, _BYTES_PER_TOKEN * num_tokens)


def choose_files(
    sizes: Mapping[str, int], path: str, *, repo: str, budget: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """
    Choose what is fetched.

    Args:
        sizes: Bytes of every file of the repository.
        path: File, folder or pattern; empty for the train split.
        repo: For messages.
        budget: Bytes after which no further file is taken.

    Returns:
        The files taken, in order, and all those they were taken from.

    Raises:
        SourceInvalid: `calibration.no-data-files`.
    """
    if path and path in sizes:
        if data_format(path) is None:
            raise _none(repo, f"`{path}` is of no format that is read", sizes)
        return (path,), (path,)
    offered = _offered(sizes, path)
    if not offered:
        what = f"nothing that is read matches `{path}`" if path else "no data file"
        raise _none(repo, what, sizes)
    taken, num_bytes = [], 0
    for name in offered:
        taken.append(name)
        num_bytes += sizes[name]
        if num_bytes >= budget:
            break
    return tuple(taken), tuple(offered)


def _offered(sizes: Mapping[str, int], path: str) -> list[str]:
    data = sorted(name for name, size in sizes.items() if size and _is_data(name))
    if "*" in path:
        return [name for name in data if fnmatchcase(name, _literal(path))]
    if path:
        return _split(name for name in data if name.startswith(f"{path}/"))
    found = _split(data)
    if not found:
        return []
    folder = min({_folder(n) for n in found}, key=lambda f: (f.count("/"), bool(f), f))
    beside = [name for name in found if _folder(name) == folder]
    kinds = {data_format(name) for name in beside}
    kind = next(kind for kind in _PREFERRED if kind in kinds)
    return [name for name in beside if data_format(name) == kind]


def _split(names: Iterable[str]) -> list[str]:
    listed = list(names)
    train = [name for name in listed if _TRAIN.search(name)]
    plain = [name for name in listed if not _OTHER.search(name)]
    return train or plain or listed


def _literal(pattern: str) -> str:
    """A pattern in which only `*` is special."""
    return re.sub(r"[\[?]", lambda match: f"[{match.group()}]", pattern)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _is_data(name: str) -> bool:
    base = name.rpartition("/")[2]
    hidden = any(part.startswith(".") for part in name.split("/"))
    return data_format(base) is not None and not hidden and not _PAPERS.match(base)


def _none(repo: str, what: str, sizes: Mapping[str, int]) -> SourceInvalid:
    data = sorted(name for name in sizes if _is_data(name))
    shown = ", ".join(f"`{name}`" for name in (data or sorted(sizes))[:_MAX_SHOWN])
    more = len(data or sizes) - _MAX_SHOWN
    there = f"{shown}{f' and {more} more' if more > 0 else ''}" or "nothing"
    hint = (
        f"name a file ({', '.join(DATASET_SUFFIXES)}), a folder or a pattern:"
        f" `hub:{repo}/data/train-*`"
    )
    hints = [hint]
    if not data:
        hints.insert(
            0,
            "many such data sets have a converted branch:"
            f" `hub:{repo}@refs/convert/parquet`",
        )
    return SourceInvalid(
        f"data set `{repo}`: {what}; it holds {there}",
        code="calibration.no-data-files",
        hints=tuple(hints),
    )

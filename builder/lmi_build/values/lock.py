"""
What a recipe was resolved to, held still: the values of a lock file.

A recipe says what is wanted and leaves open what moves: a branch, the versions of
tools, an image's tag. A lock says what those were. Planning with a lock takes them from
it, so that the same recipe gives the same keys on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lmi_build.values.dataset import DatasetFacts
    from lmi_build.values.model import FileFact, ModelFacts
    from lmi_build.values.recipe import CalibrationSpec, ModelSpec

LOCK_SCHEMA = "lmi-build/lock/v1"
# What `lock --upgrade` takes anew.
LOCK_PARTS = ("model", "calibration", "tools", "image")
# Where the versions of tools hold: everywhere, unless a narrower scope says otherwise.
EVERYWHERE = ""

Tools = Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedModel:
    """
    A model as it was.

    Args:
        source: What the recipe said.
        revision: Branch, tag or commit that the recipe named.
        trust_remote_code: Whether its own Python files were asked for too.
        commit: Full commit on a hub, else empty.
        files: Every file that fetch takes, sorted by path.
    """

    source: str
    revision: str
    trust_remote_code: bool = False
    commit: str
    files: tuple[FileFact, ...]

    @property
    def name(self) -> str:
        """As people know it; different for each entry of a lock."""
        code = " with its code" if self.trust_remote_code else ""
        return f"{self.source}@{self.revision}{code}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedData:
    """
    A calibration data set as it was.

    Args:
        dataset: What the recipe said.
        num_tokens: Tokens that were wanted of a hub's data set, which chooses among its
            files; 0 for a single file.
        commit: Full commit on a hub, else empty.
        files: What is read, in this order.
    """

    dataset: str
    num_tokens: int = 0
    commit: str
    files: tuple[FileFact, ...]

    @property
    def name(self) -> str:
        """As people know it; different for each entry of a lock."""
        wanted = f" for {self.num_tokens} tokens" if self.num_tokens else ""
        return f"{self.dataset}{wanted}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lock:
    """
    Everything that a plan of one recipe file depends on beside the file.

    Args:
        recipe: Name of the recipe.
        lmi_build: Version that wrote the lock.
        catalog: Digest of the catalogue's data.
        architecture: Processor that engines are compiled for, `x86_64` or `aarch64`.
        threads: Threads of methods whose sums depend on them; 0 where none does.
        jobs: Jobs whose containers the versions of tools were taken from; none where
            they are of the machine that wrote the lock.
        models: Of every variant, each once, sorted by name.
        calibration: Likewise.
        images: Container images by what runs in them.
        tools: Versions by scope: `EVERYWHERE`, a kind of stage, or `variant/kind`.
        toolchains: Pins of each private environment.
    """

    recipe: str
    lmi_build: str
    catalog: str
    architecture: str
    threads: int = 0
    jobs: tuple[str, ...] = ()
    models: tuple[LockedModel, ...] = ()
    calibration: tuple[LockedData, ...] = ()
    images: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, Tools] = field(default_factory=dict)
    toolchains: Mapping[str, Tools] = field(default_factory=dict)

    def model(self, spec: ModelSpec) -> LockedModel | None:
        """The entry of a recipe's model, or None where the lock has another."""
        wanted = (spec.source, spec.revision, spec.trust_remote_code)
        for entry in self.models:
            if (entry.source, entry.revision, entry.trust_remote_code) == wanted:
                return entry
        return None

    def data(self, spec: CalibrationSpec) -> LockedData | None:
        """The entry of a recipe's calibration data, or None."""
        wanted = {0, spec.num_samples * spec.max_seq_len}
        for entry in self.calibration:
            if entry.dataset == spec.dataset and entry.num_tokens in wanted:
                return entry
        return None

    def tools_of(self, variant: str, kind: str) -> dict[str, str]:
        """Versions that a stage was locked with; the narrowest scope wins."""
        found: dict[str, str] = {}
        for scope in (EVERYWHERE, kind, f"{variant}/{kind}"):
            found |= self.tools.get(scope, {})
        return found

    def without(self, parts: Iterable[str]) -> Lock:
        """The same lock with some of `LOCK_PARTS` open again."""
        empty: dict[str, object] = {}
        for part in parts:
            empty |= _EMPTY[part]
        return replace(self, **empty)  # type: ignore[arg-type]


# Threads and the processor belong to the machine that has the tools.
_EMPTY: Mapping[str, Mapping[str, object]] = {
    "model": {"models": ()},
    "calibration": {"calibration": ()},
    "tools": {
        "tools": {},
        "toolchains": {},
        "jobs": (),
        "threads": 0,
        "architecture": "",
    },
    "image": {"images": {}},
}


def locked_model(spec: ModelSpec, facts: ModelFacts) -> LockedModel:
    """The entry of a model that was resolved."""
    return LockedModel(
        source=spec.source,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
        commit=facts.revision,
        files=facts.files,
    )


def locked_data(spec: CalibrationSpec, facts: DatasetFacts) -> LockedData:
    """The entry of a calibration data set that was resolved."""
    wanted = spec.num_samples * spec.max_seq_len if facts.kind == "hub" else 0
    return LockedData(
        dataset=spec.dataset,
        num_tokens=wanted,
        commit=facts.revision,
        files=facts.files,
    )


def scoped(rows: Mapping[tuple[str, str], Tools]) -> dict[str, dict[str, str]]:
    """
    Say versions once where stages agree.

    A version that every stage with the tool has stands under `EVERYWHERE`; one that
    only all stages of a kind agree on stands under the kind; else under
    `variant/kind`. `Lock.tools_of` reads it back.

    Args:
        rows: Variant and kind of a stage to the versions of its tools.
    """
    found: dict[str, dict[str, str]] = {}
    names = sorted({name for tools in rows.values() for name in tools})
    for name in names:
        holders = {at: tools[name] for at, tools in rows.items() if name in tools}
        if len(set(holders.values())) == 1:
            found.setdefault(EVERYWHERE, {})[name] = next(iter(holders.values()))
            continue
        for kind in {kind for _, kind in holders}:
            same = {at: v for at, v in holders.items() if at[1] == kind}
            agreed = len(set(same.values())) == 1
            for (variant, _), version in same.items():
                scope = kind if agreed else f"{variant}/{kind}"
                found.setdefault(scope, {})[name] = version
    return {scope: dict(sorted(found[scope].items())) for scope in sorted(found)}


# What a difference may be about, in the order of a lock file.
_PARTS = ("lmi-build", "catalog", *LOCK_PARTS)
_PATHS: Mapping[str, str] = {
    "model": "model.source",
    "calibration": "quantize.calibration.dataset",
    "image": "job.image",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LockChange:
    """
    One thing that a lock says and that is otherwise now.

    Args:
        part: `lmi-build`, `catalog` or one of `LOCK_PARTS`.
        entry: Which one.
        field: Which value of it; empty where it has only one, or is new or gone.
        old: What the lock says; empty where it says nothing.
        new: What is so now; empty where nothing is.
    """

    part: str
    entry: str
    field: str = ""
    old: str
    new: str

    @property
    def what(self) -> str:
        """The thing in words, such as `torch` or `acme/tiny@main commit`."""
        return f"{self.entry} {self.field}".strip()

    @property
    def path(self) -> str:
        """Dotted path of the recipe's key that it belongs to; may be empty."""
        if self.part == "model" and self.field:
            return "model.revision"
        return _PATHS.get(self.part, "")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """One entry of a lock in words: a summary, and its values by field."""

    summary: str
    fields: Mapping[str, str]


def lock_changes(old: Lock, new: Lock) -> tuple[LockChange, ...]:
    """Every difference of two locks, in the order of a lock file."""
    before, after = dict(_entries(old)), dict(_entries(new))
    found: list[LockChange] = []
    for at in sorted({*before, *after}, key=lambda at: (_PARTS.index(at[0]), at[1])):
        was, now = before.get(at), after.get(at)
        if was is None or now is None:
            told = (was.summary if was else "", now.summary if now else "")
            found.append(_change(at, "", told))
            continue
        for field_name in sorted({*was.fields, *now.fields}):
            told = (was.fields.get(field_name, ""), now.fields.get(field_name, ""))
            if told[0] != told[1]:
                found.append(_change(at, field_name, told))
    return tuple(found)


def _change(at: tuple[str, str], field_name: str, told: tuple[str, str]) -> LockChange:
    return LockChange(
        part=at[0], entry=at[1], field=field_name, old=told[0], new=told[1]
    )


def _entries(lock: Lock) -> Iterator[tuple[tuple[str, str], _Entry]]:
    for entry in lock.models:
        yield ("model", entry.name), _files_entry(entry)
    for data in lock.calibration:
        yield ("calibration", data.name), _files_entry(data)
    values = {
        ("lmi-build", "version"): lock.lmi_build,
        ("catalog", "digest"): lock.catalog,
        ("tools", "architecture"): lock.architecture,
        ("tools", "threads"): str(lock.threads or ""),
        ("tools", "jobs"): ", ".join(lock.jobs),
    }
    for scope, tools in lock.tools.items():
        values |= {("tools", _at(name, scope)): tools[name] for name in tools}
    for toolchain, pins in lock.toolchains.items():
        scope = f"toolchain {toolchain}"
        values |= {("tools", _at(name, scope)): pins[name] for name in pins}
    values |= {("image", what): uri for what, uri in lock.images.items()}
    for at, value in values.items():
        if value:
            yield at, _Entry(summary=value, fields={"": value})


def _at(name: str, scope: str) -> str:
    return f"{name} of {scope}" if scope else name


def _files_entry(entry: LockedModel | LockedData) -> _Entry:
    at = f" at {entry.commit}" if entry.commit else ""
    fields = {"commit": entry.commit} if entry.commit else {}
    for file in entry.files:
        fields[f"file {file.path}"] = f"{file.digest} ({file.size} bytes)"
    return _Entry(summary=f"{len(entry.files)} files{at}", fields=fields)

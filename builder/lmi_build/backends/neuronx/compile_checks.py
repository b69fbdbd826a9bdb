"""Whether a compiled model is what was asked for, seen from its files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.toolchain import same_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lmi_build.backends.neuronx.compile_plan import CompilePlan

_SHOWN = 5


def build_problems(
    result: Path,
    record: Mapping[str, Any],
    plan: CompilePlan,
    *,
    paths: Sequence[str] = (),
) -> tuple[str, ...]:
    """
    Every difference between a result and its plan, each as part of a sentence.

    Args:
        result: The folder that a driver filled.
        record: What the driver says of it.
        plan: What was asked for.
        paths: Paths of the machine that built it, which no file of settings may hold.
    """
    return (
        *_count_problems(result, plan),
        *_file_problems(result, plan),
        *_version_problems(result, plan),
        *_effective_problems(record, plan),
        *_flag_problems(record, plan),
        *_path_problems(result, paths),
    )


def _count_problems(result: Path, plan: CompilePlan) -> Iterator[str]:
    found = sum(1 for _ in result.rglob("*.neff"))
    wanted = int(plan.call["num_neffs"])
    if found != wanted:
        yield f"it has {found} NEFFs, {wanted} were to be made"


def _file_problems(result: Path, plan: CompilePlan) -> Iterator[str]:
    missing = [name for name in plan.call["files"] if not (result / name).is_file()]
    if missing:
        yield f"it lacks {_some(missing)}"
    empty = [
        path.relative_to(result).as_posix()
        for path in sorted(result.rglob("*"))
        if path.is_file() and path.stat().st_size == 0
    ]
    if empty:
        yield f"{_some(empty)} is empty"
    weights = sorted(path.name for path in result.glob("*.safetensors"))
    if weights and plan.call["loader"] == "tnx":
        yield (
            f"{_some(weights)} lies at its root, where the loader would take it for a"
            " model that is not compiled"
        )


def _version_problems(result: Path, plan: CompilePlan) -> Iterator[str]:
    for path in sorted(result.rglob("VERSION")):
        found = path.read_text("utf-8").strip()
        if not same_version(plan.compiler, found):
            name = path.relative_to(result).as_posix()
            yield f"{name} says compiler {found}, the release has {plan.compiler}"


def _effective_problems(record: Mapping[str, Any], plan: CompilePlan) -> Iterator[str]:
    effective = record.get("effective", {})
    for name, wanted in plan.expected.items():
        found = effective.get(name)
        if found != wanted:
            yield f"its `{name}` became {found}, asked was {wanted}"


def _flag_problems(record: Mapping[str, Any], plan: CompilePlan) -> Iterator[str]:
    """A library may add flags of its own, and drop its own where a text looks alike."""
    wanted, found = list(plan.call["flags"]), record.get("compiler_flags")
    known = plan.call["loader"] == "tnx" and isinstance(found, list)
    if wanted and known and found != wanted:
        yield f"its compiler was told {found}, not {wanted}"


def _path_problems(result: Path, paths: Sequence[str]) -> Iterator[str]:
    words = [json.dumps(path)[1:-1].encode("utf-8") for path in paths]
    for path in sorted(result.rglob("*.json")):
        data = path.read_bytes()
        # `/work` alone may be a word of a model's own.
        if any(word + end in data for word in words for end in (b"/", b'"')):
            name = path.relative_to(result).as_posix()
            yield f"{name} holds a path of this machine"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown

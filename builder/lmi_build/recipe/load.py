"""
A recipe file becomes recipes, or one error with every problem.

```
file --source--> text --nodes--> tree --overrides, matrix--> variants
     --model--> sections --rules--> `values.recipe.Recipe`
```
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from lmi_build.errors import Problem, RecipeInvalid, Span
from lmi_build.recipe.credentials import hide, mark_secrets
from lmi_build.recipe.job_section import JobSection
from lmi_build.recipe.matrix import Variant, expand
from lmi_build.recipe.methods import METHODS
from lmi_build.recipe.model import (
    BoundsSection,
    CompileSection,
    ModelSection,
    PublishSection,
    RecipeModel,
    VerifySection,
)
from lmi_build.recipe.nodes import Node, compose, plain, walk
from lmi_build.recipe.overrides import apply_overrides
from lmi_build.recipe.problems import describe, translate
from lmi_build.recipe.resolve import to_recipe
from lmi_build.recipe.rules import Sections, check_rules
from lmi_build.recipe.source import read_source, source_from_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from lmi_build.recipe.source import Source
    from lmi_build.values.recipe import Recipe

# More than anybody reads; a file of ten thousand faults is the wrong file.
MAX_PROBLEMS = 100

_SECTIONS = {
    "model": ModelSection,
    "bounds": BoundsSection,
    "compile": CompileSection,
    "verify": VerifySection,
    "publish": PublishSection,
    "job": JobSection,
}


def load_recipe(path: Path, *, overrides: Sequence[str] = ()) -> tuple[Recipe, ...]:
    """
    Read a recipe file.

    Args:
        path: The file, YAML 1.2 in UTF-8.
        overrides: `a.b=c` arguments of `--set`, applied in order.

    Returns:
        One recipe, or one for each variant of its matrix.

    Raises:
        RecipeInvalid: Every problem of the file and of the overrides, in file order.
    """
    return _load(read_source(path), overrides)


def parse_recipe(
    text: str, *, file: str = "recipe.yaml", overrides: Sequence[str] = ()
) -> tuple[Recipe, ...]:
    """
    Read a recipe from text; `file` is the name that messages show.

    Raises:
        RecipeInvalid: Every problem, in file order.
    """
    return _load(source_from_text(file, text), overrides)


def _load(source: Source, overrides: Sequence[str]) -> tuple[Recipe, ...]:
    composed = compose(source)
    if not isinstance(composed.root.value, dict):
        raise RecipeInvalid((_not_a_mapping(composed.root),))
    overridden = apply_overrides(composed.root, overrides)
    root = overridden.root
    problems = [*composed.problems, *overridden.problems]
    rows = mark_secrets(root)
    if composed.broken:
        raise RecipeInvalid(_finish(hide(problems, rows)))
    variants, sound = _variants(root, overridden.paths, problems)
    checked: list[tuple[Variant, RecipeModel]] = []
    for variant in variants:
        model, found = _check(variant.root)
        # A broken matrix may be what would have set a missing key.
        problems += [p for p in found if sound or p.code != "recipe.missing-key"]
        if model is not None:
            checked.append((variant, model))
    problems += _unseen(root, problems)
    if problems:
        raise RecipeInvalid(_finish(hide(problems, rows)))
    named = root.value.get("name") if isinstance(root.value, dict) else None
    family = str(named.value) if named is not None else ""
    return tuple(
        replace(
            to_recipe(
                model,
                file=source.file,
                overrides=tuple(overrides),
                spans={path: node.place for path, node in walk(variant.root) if path},
                variant=variant.values,
            ),
            family=family,
        )
        for variant, model in checked
    )


def _variants(
    root: Node, pinned: frozenset[str], problems: list[Problem]
) -> tuple[list[Variant], bool]:
    """The variants to check, and whether the matrix, if any, is sound."""
    values: dict[str, Node] = root.value if isinstance(root.value, dict) else {}
    base = Node({k: v for k, v in values.items() if k != "matrix"}, root.span)
    section = values.get("matrix")
    if section is None:
        return [Variant(root=base, values={})], True
    variants, found = expand(base, section, pinned)
    problems += found
    return variants or [Variant(root=base, values={})], not found


def _unseen(root: Node, problems: Iterable[Problem]) -> list[Problem]:
    """Faults of the whole tree that no variant had: in `exclude`, for one."""
    told = {(problem.code, problem.span) for problem in problems}
    return [p for p in _faults(root, "") if (p.code, p.span) not in told]


def _check(root: Node) -> tuple[RecipeModel | None, list[Problem]]:
    """Check one recipe; a faulty value is told once, however many rules it breaks."""
    problems = _faults(root, "")
    faulty = {problem.path for problem in problems}
    raw = plain(root)
    model: RecipeModel | None = None
    try:
        model = RecipeModel.model_validate(raw)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        for problem in translate(root, details):
            if problem.path not in faulty:
                problems.append(problem)
    faulty = {problem.path for problem in problems}
    sections = _sections(raw) if model is None else _sections_of(model)
    problems += [p for p in check_rules(sections) if p.path not in faulty]
    return model, [_located(root, problem) for problem in problems]


def _faults(root: Node, top: str) -> list[Problem]:
    problems = []
    for path, node in walk(root, top):
        fault = node.fault
        if fault is None and node.value is None:
            fault = Problem(
                code="recipe.empty-value",
                message=f"`{path}` is empty",
                hint="write a value, or remove the line",
                span=node.key_span or node.span,
            )
        if fault is not None:
            problems.append(
                Problem(
                    code=fault.code,
                    message=fault.message,
                    hint=fault.hint,
                    path=path,
                    span=fault.span,
                )
            )
    return problems


def _sections_of(model: RecipeModel) -> Sections:
    return Sections(
        model=model.model,
        quantize=model.quantize,
        bounds=model.bounds,
        compile=model.compile,
        verify=model.verify,
        publish=model.publish,
        job=model.job,
    )


def _sections(raw: Any) -> Sections:
    """Each section that is sound by itself, when the whole is not."""
    found: dict[str, Any] = {}
    quantize = raw.get("quantize", {})
    method = quantize.get("method") if isinstance(quantize, dict) else None
    kinds: dict[str, Any] = dict(_SECTIONS)
    if isinstance(method, str) and method in METHODS:
        kinds["quantize"] = METHODS[method]
    for name, kind in kinds.items():
        try:
            found[name] = TypeAdapter(kind).validate_python(raw.get(name))
        except ValidationError:
            # Its problems were told with those of the whole.
            continue
    return Sections(**found)


def _located(root: Node, problem: Problem) -> Problem:
    if problem.span is not None:
        return problem
    places = {path: node.place for path, node in walk(root)}
    path = problem.path
    while path not in places:
        path = path.rpartition(".")[0]
    return Problem(
        code=problem.code,
        message=problem.message,
        path=problem.path,
        hint=problem.hint,
        span=places[path],
    )


def _not_a_mapping(root: Node) -> Problem:
    return Problem(
        code="recipe.not-a-mapping",
        message=f"a recipe is a mapping of sections, not {describe(root)}",
        hint="start with `schema: lmi-build/v1`",
        span=root.span,
    )


def _finish(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Each problem once, in the order of the text, and not too many."""

    def place(problem: Problem) -> tuple[bool, int, int]:
        span = problem.span or Span(file="", line=1, column=1)
        return span.file == "--set", span.line, span.column

    unique = sorted(dict.fromkeys(problems), key=place)
    if len(unique) <= MAX_PROBLEMS:
        return tuple(unique)
    rest = Problem(
        code="recipe.more-problems",
        message=f"{len(unique) - MAX_PROBLEMS} more problems are not shown",
        hint="mend these first, and check that this is the right file",
    )
    return (*unique[:MAX_PROBLEMS], rest)

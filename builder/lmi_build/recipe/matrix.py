"""
`matrix`: one recipe that stands for many.

Every combination of the axes is a variant, less those that `exclude` matches, plus
those of `include`; each is then checked like a recipe of its own. Where the matrix
chooses the method, options of `quantize` that this method has not are left out of
the variant, and are a problem only if no variant has a use for them.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lmi_build.digest import digest_json, short
from lmi_build.errors import Problem, Span
from lmi_build.recipe.edit import get, put, split_path
from lmi_build.recipe.form import slug
from lmi_build.recipe.keys import all_paths, is_known, method_keys
from lmi_build.recipe.methods import METHODS
from lmi_build.recipe.nodes import Node, plain
from lmi_build.recipe.words import nearest, show
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.digest import JSONValue

MAX_VARIANTS = 256
MAX_NAME_CHARS = 63

_Cell = dict[str, Node]


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """
    One recipe of a matrix.

    Args:
        root: Its whole tree, under its own name.
        values: What the matrix set, by dotted path.
    """

    root: Node
    values: Mapping[str, JSONValue]


@dataclass(slots=True)
class _Matrix:
    """A matrix section, read; faulty parts are left out and told in `problems`."""

    axes: dict[str, list[Node]] = field(default_factory=dict)
    exclude: list[_Cell] = field(default_factory=list)
    include: list[_Cell] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def report(self, code: str, message: str, hint: str, span: Span, path: str) -> None:
        self.problems.append(
            Problem(code=code, message=message, hint=hint, span=span, path=path)
        )


def expand(
    root: Node, section: Node, pinned: frozenset[str]
) -> tuple[list[Variant], list[Problem]]:
    """
    Make the variants of a recipe.

    Args:
        root: The recipe without its matrix.
        section: The matrix.
        pinned: Paths set by overrides; an axis of that path keeps to the override.

    Returns:
        The variants in a stable order, and what is wrong with the matrix.
    """
    matrix = _read(section)
    for path in matrix.axes:
        node = get(root, split_path(path)) if path in pinned else None
        if node is not None:
            matrix.axes[path] = [node]
            matrix.exclude = [
                cell for cell in matrix.exclude if _fits(cell, path, node)
            ]
    total = math.prod(len(values) for values in matrix.axes.values())
    if total + len(matrix.include) > MAX_VARIANTS:
        matrix.report(
            "recipe.matrix-size",
            f"the matrix makes {total + len(matrix.include)} variants, "
            f"{MAX_VARIANTS} are allowed",
            "remove values, or split the recipe",
            section.place,
            "matrix",
        )
        return [], matrix.problems
    cells = [cell for cell in _product(matrix.axes) if not _excluded(cell, matrix)]
    cells += matrix.include
    if not cells and not matrix.problems:
        matrix.report(
            "recipe.matrix-empty",
            "the matrix makes no variant",
            "add an axis such as `quantize.method: [gptq, int8]`, or exclude less",
            section.place,
            "matrix",
        )
    variants, unused = _variants(root, cells, matrix)
    # An override of the method narrows the matrix; what it leaves unused is meant for
    # the variants that it leaves out.
    if "quantize.method" not in pinned:
        _report_unused(unused, matrix)
    return variants, matrix.problems


def _fits(cell: _Cell, path: str, node: Node) -> bool:
    return path not in cell or plain(cell[path]) == plain(node)


def _product(axes: Mapping[str, list[Node]]) -> list[_Cell]:
    if not axes:
        return []
    rows = itertools.product(*axes.values())
    return [dict(zip(axes, row, strict=True)) for row in rows]


def _excluded(cell: _Cell, matrix: _Matrix) -> bool:
    return any(
        all(
            path in cell and plain(cell[path]) == plain(node)
            for path, node in excluded.items()
        )
        for excluded in matrix.exclude
    )


def _read(section: Node) -> _Matrix:
    matrix = _Matrix()
    if not isinstance(section.value, dict):
        matrix.report(
            "recipe.wrong-type",
            "`matrix` must be a mapping of paths to lists",
            "write `matrix: {quantize.method: [gptq, int8]}`",
            section.place,
            "matrix",
        )
        return matrix
    for path, node in section.value.items():
        if path not in {"exclude", "include"} and _check_path(path, node, matrix):
            values = _values(path, node, matrix)
            if values:
                matrix.axes[path] = values
    for name in ("exclude", "include"):
        node_or_none = section.value.get(name)
        if node_or_none is not None:
            cells = _cells(name, node_or_none, matrix)
            setattr(matrix, name, cells)
    return matrix


def _check_path(path: str, node: Node, matrix: _Matrix) -> bool:
    top = path.partition(".")[0]
    span = node.key_span or node.span
    where = f"matrix.{show(path)}"
    if top in {"schema", "name", "matrix"}:
        matrix.report(
            "recipe.matrix-path",
            f"`{show(path)}` cannot differ between variants",
            "remove it; variants are named after their values",
            span,
            where,
        )
        return False
    if is_known(path):
        return True
    near = nearest(path, all_paths())
    matrix.report(
        "recipe.matrix-path",
        f"the recipe has no `{show(path)}`",
        f"did you mean `{near}`?" if near else "write a path such as `quantize.method`",
        span,
        where,
    )
    return False


def _values(path: str, node: Node, matrix: _Matrix) -> list[Node]:
    where = f"matrix.{path}"
    if not isinstance(node.value, list) or not node.value:
        matrix.report(
            "recipe.matrix-values",
            f"`{path}` needs a list of values",
            f"write `{path}: [{show(node.text or '...')}]`",
            node.place,
            where,
        )
        return []
    seen: list[JSONValue] = []
    for index, item in enumerate(node.value):
        value = plain(item)
        # `1` and `true` are equal in Python, so the type is compared as well.
        if any(value == old and type(value) is type(old) for old in seen):
            matrix.report(
                "recipe.matrix-values",
                f"`{show(item.text)}` stands twice in `{path}`",
                "remove one",
                item.span,
                f"{where}[{index}]",
            )
        seen.append(value)
    return node.value


def _cells(name: str, node: Node, matrix: _Matrix) -> list[_Cell]:
    where = f"matrix.{name}"
    items = node.value if isinstance(node.value, list) else [node]
    cells: list[_Cell] = []
    for index, item in enumerate(items):
        if not isinstance(node.value, list) or not isinstance(item.value, dict):
            matrix.report(
                "recipe.wrong-type",
                f"`{where}` must be a list of mappings of paths to values",
                f"write `{name}: [{{quantize.method: gptq}}]`",
                item.place,
                where,
            )
            continue
        place = f"{where}[{index}]"
        check = _check_excluded if name == "exclude" else _check_included
        if item.value and all(
            check(path, cell, matrix, place) for path, cell in item.value.items()
        ):
            cells.append(item.value)
    return cells


def _check_included(path: str, node: Node, matrix: _Matrix, where: str) -> bool:
    del where
    return _check_path(path, node, matrix)


def _check_excluded(path: str, node: Node, matrix: _Matrix, where: str) -> bool:
    axis = matrix.axes.get(path)
    if axis is None:
        near = nearest(path, list(matrix.axes))
        matrix.report(
            "recipe.matrix-exclude",
            f"`{show(path)}` is no axis of the matrix",
            f"did you mean `{near}`?"
            if near
            else f"name an axis: {join_words(list(matrix.axes)) or 'there is none'}",
            node.key_span or node.span,
            where,
        )
        return False
    if any(plain(item) == plain(node) for item in axis):
        return True
    matrix.report(
        "recipe.matrix-exclude",
        f"`{path}` never is `{show(node.text)}`, so nothing is excluded",
        f"write {join_words([show(item.text) for item in axis])}",
        node.place,
        where,
    )
    return False


def _variants(
    root: Node, cells: list[_Cell], matrix: _Matrix
) -> tuple[list[Variant], dict[str, Node]]:
    """The variants, and the options that none of them has a use for."""
    variants: list[Variant] = []
    taken: set[str] = set()
    unused: dict[str, Node] | None = None
    for cell in cells:
        tree, dropped = _tree(root, cell)
        unused = (
            dropped
            if unused is None
            else {key: node for key, node in unused.items() if key in dropped}
        )
        tree = _named(tree, cell, taken, matrix)
        values = {path: plain(node) for path, node in cell.items()}
        variants.append(Variant(root=tree, values=values))
    return variants, unused or {}


def _report_unused(unused: Mapping[str, Node], matrix: _Matrix) -> None:
    for key, node in unused.items():
        matrix.report(
            "recipe.unused-option",
            f"`{key}` means nothing for any method of the matrix",
            "remove it",
            node.key_span or node.span,
            f"quantize.{key}",
        )


def _tree(root: Node, cell: _Cell) -> tuple[Node, dict[str, Node]]:
    """The recipe of a cell, and the options that its method has no use for."""
    tree, dropped = root, {}
    base = get(root, ("quantize",))
    axis = cell.get("quantize.method")
    method = axis.value if axis and isinstance(axis.value, str) else ""
    if method in METHODS and base and isinstance(base.value, dict):
        keys = _useful_keys(method, base.value, cell)
        every = {key for name in METHODS for key in method_keys(name)}
        dropped = {
            key: node
            for key, node in base.value.items()
            if key in every and key not in keys
        }
        kept = {k: node for k, node in base.value.items() if k not in dropped}
        tree = put(root, ("quantize",), replace(base, value=kept)) or root
    for path, node in cell.items():
        key_span = node.key_span or node.span
        # A step into what is no section stays undone; the section's own fault is told.
        tree = put(tree, split_path(path), replace(node, key_span=key_span)) or tree
    return tree, dropped


def _useful_keys(
    method: str, section: Mapping[str, Node], cell: _Cell
) -> frozenset[str]:
    """The options of a method, without a calibration that nothing would read."""
    keys = frozenset(method_keys(method))
    if method not in {"int8", "fp8"}:
        return keys

    def value(key: str) -> object:
        node = cell.get(f"quantize.{key}") or section.get(key)
        return node.value if node else None

    static = value("activations") == "static"
    cached = value("kv_cache_dtype") in {"int8", "fp8"}
    return keys if static or cached else keys - {"calibration"}


def _named(tree: Node, cell: _Cell, taken: set[str], matrix: _Matrix) -> Node:
    name = get(tree, ("name",))
    if name is None or not isinstance(name.value, str):
        return tree
    base = "-".join([name.value, *(_label(node) for node in cell.values())])
    full = base
    for number in itertools.count(2):
        if full not in taken:
            break
        full = f"{base}-{number}"
    taken.add(full)
    if len(full) > MAX_NAME_CHARS >= len(name.value):
        if any(problem.path == "name" for problem in matrix.problems):
            return tree
        matrix.report(
            "recipe.name",
            f"the variant's name `{show(full)}` has {len(full)} characters, "
            f"{MAX_NAME_CHARS} fit",
            f"shorten `{show(name.value)}` by {len(full) - MAX_NAME_CHARS}",
            name.span,
            "name",
        )
        return tree
    return put(tree, ("name",), replace(name, value=full, text=full)) or tree


def _label(node: Node) -> str:
    """The part of a variant's name that tells a value."""
    value = plain(node)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return slug(str(value).rstrip("/").rpartition("/")[2]) or "x"
    return short(digest_json(value))[:8]

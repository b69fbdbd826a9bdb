"""What the package imports is what its metadata asks for."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import lmi_build

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(lmi_build.__file__).parent
_PROJECT = _ROOT.parent.parent / "pyproject.toml"
# Module to distribution, where the names differ.
_DISTRIBUTIONS = {
    "awq": "autoawq",
    "modelopt": "nvidia_modelopt",
    "botocore": "boto3",
    "pydantic_core": "pydantic",
    "ruamel": "ruamel.yaml",
    "s3transfer": "boto3",
    "vl_convert": "vl_convert_python",
    "werkzeug": "moto",
}
# Found when they are there; without them there is another way, or a clear error.
_OPTIONAL = {"awscrt"}
# The serving container's own; the handler runs nowhere else.
_CONTAINER = {"djl_python"}


def _imports(node: ast.AST) -> Iterator[str]:
    """Top-level modules imported when the code runs, at any depth."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _imports(other)
        elif isinstance(child, ast.Import):
            yield from (alias.name.split(".")[0] for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            # A relative import names a module of the same package.
            if not child.level:
                yield (child.module or "").split(".")[0]
        else:
            yield from _imports(child)


def test_every_import_is_declared() -> None:
    """
    A module that no requirement brings is there by accident on this machine only.
    """
    declared = {
        re.split(r"[\[<>=; ]", row)[0].replace("-", "_").lower()
        for row in re.findall(r'"([^"\n]+)"', _PROJECT.read_text(encoding="utf-8"))
    }
    found = {
        name: path.relative_to(_ROOT).as_posix()
        for path in _ROOT.rglob("*.py")
        for name in _imports(ast.parse(path.read_bytes()))
    }
    foreign = {
        name: path
        for name, path in found.items()
        if name not in sys.stdlib_module_names
        and name not in _CONTAINER | _OPTIONAL | {"lmi_build"}
        and _DISTRIBUTIONS.get(name, name).lower() not in declared
    }

    assert "pydantic" in found
    assert foreign == {}

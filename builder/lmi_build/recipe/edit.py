"""Values put into a tree of nodes, without touching the tree they come from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.recipe.keys import FREE
from lmi_build.recipe.nodes import Node

if TYPE_CHECKING:
    from collections.abc import Sequence


def split_path(path: str) -> list[str]:
    """
    Split a dotted path into keys.

    Inside a section whose keys are the user's own, the rest is one key, dots and all.
    """
    for free in FREE:
        if path.startswith(f"{free}."):
            return [*free.split("."), path[len(free) + 1 :]]
    return path.split(".")


def put(root: Node, steps: Sequence[str], node: Node) -> Node | None:
    """
    A tree with one value replaced or added; sections on the way are made.

    Returns:
        The new root, or None when a step leads into something that has no keys.
    """
    if not isinstance(root.value, dict):
        return None
    step, *rest = steps
    if rest:
        below = root.value.get(step)
        if below is None:
            below = Node({}, node.span, key_span=node.key_span or node.span)
        child = put(below, rest, node)
        if child is None:
            return None
    else:
        child = node
    return replace(root, value={**root.value, step: child})


def get(root: Node, steps: Sequence[str]) -> Node | None:
    """The node at a path, if the text has it."""
    node: Node | None = root
    for step in steps:
        if node is None or not isinstance(node.value, dict):
            return None
        node = node.value.get(step)
    return node

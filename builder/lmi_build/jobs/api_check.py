"""
A request held against SageMaker's own service model, before it is sent.

botocore's validator looks at names, types, required members and minima of length; the
server also refuses by enumeration, pattern and maximum. All of these stand in the model
that botocore ships, and all are checked here, each fault by its dotted path.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from lmi_build.errors import UsageInvalid
from lmi_build.recipe.words import show
from lmi_build.text import did_you_mean, join_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SERVICE = "sagemaker"
UNKNOWN, MISSING, TYPE, ENUM = "unknown", "required", "type", "enum"
PATTERN, MIN, MAX, UNION = "pattern", "min", "max", "union"
RULES = (UNKNOWN, MISSING, TYPE, ENUM, PATTERN, MIN, MAX, UNION)
# An enumeration of instance types has hundreds of words.
_MOST_WORDS = 8

_TYPES: Mapping[str, tuple[tuple[type, ...], str]] = {
    "structure": ((dict,), "a mapping"),
    "map": ((dict,), "a mapping"),
    "list": ((list, tuple), "a list"),
    "string": ((str,), "text"),
    "character": ((str,), "text"),
    "integer": ((int,), "a whole number"),
    "long": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "double": ((int, float), "a number"),
    "boolean": ((bool,), "true or false"),
}
_NUMBERS = ("integer", "long", "float", "double")


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """
    One rule of the API that a request breaks.

    Args:
        path: Dotted path in the request, such as `Tags[0].Key`.
        rule: Of `RULES`.
        value: What stands there, cut for one line; empty where nothing does.
        limit: What the rule says: a number, a pattern, the words of an enumeration.
        fix: What to write instead.
    """

    path: str
    rule: str
    value: str
    limit: str
    fix: str

    @property
    def message(self) -> str:
        """Field, value and rule in one sentence."""
        words = {
            UNKNOWN: "is no member of the request",
            MISSING: "is missing",
            TYPE: f"is `{self.value}`, not {self.limit}",
            ENUM: f"is `{self.value}`, none of {self.limit}",
            PATTERN: f"is `{self.value}`, which `{self.limit}` does not match",
            MIN: f"is `{self.value}`, less than {self.limit}",
            MAX: f"is `{self.value}`, more than {self.limit}",
            UNION: f"has {self.value}, and takes exactly one of {self.limit}",
        }
        return f"`{self.path}` {words[self.rule]}"


def check_request(operation: str, document: Mapping[str, Any]) -> tuple[Violation, ...]:
    """
    Every rule of the API that a request breaks.

    Args:
        operation: Such as `CreateProcessingJob`.
        document: The request, as boto3 takes it.

    Raises:
        ValueError: SageMaker has no such operation.
    """
    return tuple(_walk(_input_shape(operation), document, ""))


def refuse(operation: str, document: Mapping[str, Any]) -> None:
    """
    Refuse a request that the API would refuse.

    Raises:
        UsageInvalid: `job.request`, with every rule that it breaks.
    """
    found = check_request(operation, document)
    if not found:
        return
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    raise UsageInvalid(
        f"{operation}: {found[0].message}{more}",
        code="job.request",
        hints=tuple(f"{each.message}: {each.fix}" for each in found),
    )


@cache
def service_model() -> Any:
    """SageMaker as botocore describes it; read once, since it takes 0.1 s."""
    from botocore.loaders import Loader
    from botocore.model import ServiceModel

    description = Loader().load_service_model(SERVICE, "service-2")
    return ServiceModel(description, SERVICE)


@cache
def _input_shape(operation: str) -> Any:
    from botocore.model import OperationNotFoundError

    try:
        return service_model().operation_model(operation).input_shape
    except OperationNotFoundError as error:
        raise ValueError(f"{SERVICE} has no operation {operation}") from error


def _words(shape: Any) -> str:
    """What a value of a shape is, for messages."""
    return _TYPES.get(shape.type_name, ((), f"a {shape.type_name}"))[1]


def _walk(shape: Any, value: object, path: str) -> Iterator[Violation]:
    kind = shape.type_name
    types, words = _TYPES.get(kind, ((object,), kind))
    # Python takes True for a 1; the API does not.
    truth = isinstance(value, bool) and kind != "boolean"
    if truth or not isinstance(value, types):
        yield Violation(
            path=path or shape.name,
            rule=TYPE,
            value=show(str(value)),
            limit=words,
            fix=f"write {words}",
        )
        return
    walker = _WALKERS.get(kind)
    if walker is not None:
        yield from walker(shape, value, path)


def _structure(shape: Any, value: Any, path: str) -> Iterator[Violation]:
    members = shape.members
    if getattr(shape, "is_tagged_union", False) and len(value) != 1:
        yield Violation(
            path=path or shape.name,
            rule=UNION,
            value=", ".join(sorted(value)) or "nothing",
            limit=join_words(list(members)),
            fix="keep one of them",
        )
    for name in shape.required_members:
        # boto3 makes up a token itself.
        if name not in value and "idempotencyToken" not in members[name].metadata:
            yield Violation(
                path=_join(path, name),
                rule=MISSING,
                value="",
                limit=members[name].name,
                fix=f"set it, to {_words(members[name])}",
            )
    for name, item in value.items():
        if name in members:
            yield from _walk(members[name], item, _join(path, name))
            continue
        near = did_you_mean(name, list(members))
        yield Violation(
            path=_join(path, name),
            rule=UNKNOWN,
            value=show(str(item)),
            limit=join_words(list(members)),
            fix=f"did you mean `{near}`?" if near else "remove it",
        )


def _list(shape: Any, value: Any, path: str) -> Iterator[Violation]:
    yield from _bounds(shape, len(value), path, what="items")
    for index, item in enumerate(value):
        yield from _walk(shape.member, item, f"{path}[{index}]")


def _map(shape: Any, value: Any, path: str) -> Iterator[Violation]:
    yield from _bounds(shape, len(value), path, what="entries")
    for key, item in value.items():
        place = f"{path}.{show(str(key))}"
        yield from _walk(shape.key, key, f"{place} (its name)")
        yield from _walk(shape.value, item, place)


def _text(shape: Any, value: Any, path: str) -> Iterator[Violation]:
    yield from _bounds(shape, len(value), path, what="characters")
    if shape.enum and value not in shape.enum:
        near = did_you_mean(value, shape.enum)
        few = len(shape.enum) <= _MOST_WORDS
        yield Violation(
            path=path,
            rule=ENUM,
            value=show(value),
            limit=join_words(shape.enum) if few else f"{len(shape.enum)} words",
            fix=f"did you mean `{near}`?" if near else "write one of its words",
        )
    pattern = shape.metadata.get("pattern")
    if pattern is not None and not matches(pattern, value):
        yield Violation(
            path=path,
            rule=PATTERN,
            value=show(value),
            limit=pattern,
            fix="write text of that form",
        )


def _number(shape: Any, value: Any, path: str) -> Iterator[Violation]:
    yield from _bounds(shape, value, path, what="")


def _bounds(shape: Any, size: float, path: str, *, what: str) -> Iterator[Violation]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    shown = f"{size} {what}".strip()
    if low is not None and size < low:
        yield Violation(
            path=path,
            rule=MIN,
            value=shown,
            limit=str(low),
            fix=f"write at least {low} {what}".strip(),
        )
    if high is not None and size > high:
        yield Violation(
            path=path,
            rule=MAX,
            value=shown,
            limit=str(high),
            fix=f"write at most {high} {what}".strip(),
        )


_WALKERS: Mapping[str, Callable[[Any, Any, str], Iterator[Violation]]] = {
    "structure": _structure,
    "list": _list,
    "map": _map,
    "string": _text,
    "character": _text,
    **dict.fromkeys(_NUMBERS, _number),
}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# Java's classes of characters in the model's patterns, by Unicode's general category.
_CLASS = re.compile(r"\\p\{(\w+)\}")
# Of the supplementary planes, as pairs of surrogates; Python has characters instead.
_PAIRS = r"\uD800\uDC00-\uDBFF\uDFFF"
_ALL_PLANES = "\U00010000-\U0010ffff"
# Some patterns repeat the end of the text, which changes nothing.
_REPEATED_END = re.compile(r"\$\{\d+,\d+\}")


def matches(pattern: str, value: str) -> bool:
    """
    Whether the whole of a text matches a pattern of the model.

    The patterns are Java's. Its classes of Unicode's categories become those
    characters of the text that belong to them, so that no table of Unicode is needed.

    Args:
        pattern: As in the model.
        value: The text.
    """
    return _compiled(pattern, _alphabet(pattern, value)).fullmatch(value) is not None


def _alphabet(pattern: str, value: str) -> str:
    """The characters that decide what a class of the pattern stands for."""
    return "".join(sorted(set(value))) if "\\p{" in pattern else ""


@cache
def _compiled(pattern: str, alphabet: str) -> re.Pattern[str]:
    def members(match: re.Match[str]) -> str:
        found = [c for c in alphabet if _belongs(c, match.group(1))]
        # A class may be empty for this text, where Python wants a character.
        return "".join(re.escape(c) for c in found) or "\U0010ffff"

    python = _CLASS.sub(members, pattern.replace(_PAIRS, _ALL_PLANES))
    return re.compile(_REPEATED_END.sub("$", python), re.ASCII)


def _belongs(character: str, name: str) -> bool:
    """Whether a class of Java's, by Unicode's category, holds a character."""
    if name == "Alnum":
        return character.isascii() and character.isalnum()
    return unicodedata.category(character).startswith(name)

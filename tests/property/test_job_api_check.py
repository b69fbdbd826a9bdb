"""The walker over the service model finds every rule that a request breaks."""

from __future__ import annotations

import copy
import re
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmi_build.errors import UsageInvalid
from lmi_build.jobs import api_check
from lmi_build.jobs.api_check import check_request, matches, refuse, service_model

if TYPE_CHECKING:
    from collections.abc import Iterator

OPERATIONS = (
    "CreateProcessingJob",
    "CreateTrainingJob",
    "CreateModel",
    "CreateEndpointConfig",
    "CreateEndpoint",
    "CreateOptimizationJob",
    "CreatePipeline",
)
# Text that each pattern of these operations takes; the shape's name, where it matters.
_TEXTS = (
    "a1",
    "arn:aws:iam::111122223333:role/builder",
    "s3://bucket/prefix",
    "arn:aws:lambda:us-east-1:111122223333:function:f",
    "fs-0123456789a",
    "arn:aws:sagemaker:us-east-1:111122223333:training-plan/some-plan-of-mine",
    "arn:aws:sagemaker:us-east-1:111122223333:mlflow-app/a",
    "arn:aws:sagemaker:us-east-1:111122223333:model-package-group/a",
    "arn:aws:sagemaker:us-east-1:111122223333:model-package/a",
    "arn:aws:sagemaker:us-east-1:aws:hub-content/a/Model/a/1.0.0",
    "arn:aws:sagemaker:us-east-1:aws:hub-content/a/DataSet/a/1.0.0",
    "8K",
    "arn:aws:sns:us-east-1:111122223333:topic",
    "application/json",
    "arn:aws:sagemaker:us-east-1:111122223333:inference-experiment/a",
    "1024x",
    "{}",
    "/metrics",
    "ml-reservation",
    "en",
    "a" * 40,
)


def text_for(shape: Any) -> str:
    """Text that a shape takes, by trial; none may be wrong by these rules alone."""
    if shape.enum:
        return str(shape.enum[0])
    low = shape.metadata.get("min", 0)
    high = shape.metadata.get("max", 1 << 20)
    pattern = shape.metadata.get("pattern", "[\\s\\S]*")
    candidates = [*_TEXTS, *(text.ljust(low, "a") for text in _TEXTS)]
    for text in candidates:
        if low <= len(text) <= high and matches(pattern, text):
            return text
    raise AssertionError((shape.name, shape.metadata))


def sample(shape: Any, depth: int = 0) -> Any:
    """A value of a shape with everything in it, down to a depth."""
    kind = shape.type_name
    if kind == "structure":
        members = list(shape.members.items())
        if getattr(shape, "is_tagged_union", False):
            members = members[:1]
        needed = set(shape.required_members)
        return {
            name: sample(member, depth + 1)
            for name, member in members
            if name in needed or depth < 3 or shape.is_tagged_union
        }
    if kind == "list":
        count = max(1, shape.metadata.get("min", 1))
        return [sample(shape.member, depth + 1) for _ in range(count)]
    if kind == "map":
        return {text_for(shape.key): sample(shape.value, depth + 1)}
    if kind == "string":
        return text_for(shape)
    if kind == "boolean":
        return True
    if kind == "timestamp":
        return "2026-01-01T00:00:00Z"
    low = shape.metadata.get("min", 1)
    return max(1, low) if kind in {"integer", "long"} else float(max(0.5, low))


def places(shape: Any, value: Any, path: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Every place of a value with its shape."""
    yield path, shape
    if shape.type_name == "structure":
        for name, item in value.items():
            yield from places(shape.members[name], item, (*path, name))
    elif shape.type_name == "list":
        yield from places(shape.member, value[0], (*path, 0))
    elif shape.type_name == "map":
        for name, item in value.items():
            yield from places(shape.value, item, (*path, name))


def dotted(path: tuple[Any, ...]) -> str:
    """A path as messages write it."""
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)
    return text.lstrip(".")


def put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value at one place."""
    changed = copy.deepcopy(document)
    at = changed
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return changed


Broken = tuple[str, str, Any]


def breakings(shape: Any, value: Any) -> Iterator[Broken]:
    """Rule, what is appended to the path, and a value that breaks it."""
    yield "type", "", object()
    yield from _BREAKERS.get(shape.type_name, lambda _shape, _value: iter(()))(
        shape, value
    )


def _break_structure(shape: Any, value: Any) -> Iterator[Broken]:
    yield "unknown", ".NoSuchMember", {**value, "NoSuchMember": 1}
    for name in shape.required_members:
        if "idempotencyToken" in shape.members[name].metadata:
            continue
        yield "required", f".{name}", {k: v for k, v in value.items() if k != name}
    if getattr(shape, "is_tagged_union", False):
        yield "union", "", {}


def _break_number(shape: Any, value: Any) -> Iterator[Broken]:
    del value
    for rule, step in (("min", -1), ("max", 1)):
        if rule in shape.metadata:
            yield rule, "", shape.metadata[rule] + step


def _break_list(shape: Any, value: Any) -> Iterator[Broken]:
    if shape.metadata.get("min"):
        yield "min", "", []
    if "max" in shape.metadata:
        yield "max", "", [value[0]] * (shape.metadata["max"] + 1)


def _break_text(shape: Any, value: Any) -> Iterator[Broken]:
    del value
    limits = shape.metadata
    if shape.enum:
        yield "enum", "", "no-such-word"
    if limits.get("min"):
        yield "min", "", ""
    if limits.get("max", 1 << 16) < 1 << 16:
        yield "max", "", "a" * (limits["max"] + 1)
    pattern = limits.get("pattern")
    if pattern and not matches(pattern, "\x00 \n!"):
        yield "pattern", "", "\x00 \n!"


_BREAKERS = {
    "structure": _break_structure,
    "list": _break_list,
    "string": _break_text,
    **dict.fromkeys(("integer", "long", "float", "double"), _break_number),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_sound_request_breaks_no_rule(operation: str) -> None:
    """What is made from the model breaks no rule of it."""
    shape = service_model().operation_model(operation).input_shape

    assert check_request(operation, sample(shape)) == ()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_rule_is_found_at_its_place(operation: str) -> None:
    """One value broken in one way is found by its rule, at its dotted path."""
    shape = service_model().operation_model(operation).input_shape
    document = sample(shape)
    tried = 0
    for path, part in places(shape, document):
        value = document
        for step in path:
            value = value[step]
        for rule, suffix, broken in breakings(part, value):
            request = put(document, path, broken) if path else broken
            if not isinstance(request, dict):
                continue
            found = {
                (each.rule, each.path) for each in check_request(operation, request)
            }
            where = dotted(path) + suffix
            assert (rule, where.lstrip(".")) in found, (rule, where, found)
            tried += 1

    assert tried > len(shape.members)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_botocore_takes_what_we_take(operation: str) -> None:
    """The other validator, where it looks, agrees."""
    from botocore.validate import ParamValidator

    shape = service_model().operation_model(operation).input_shape

    report = ParamValidator().validate(sample(shape), shape)

    assert not report.has_errors(), report.generate_report()


def test_every_pattern_of_the_service_can_be_read() -> None:
    """No pattern of any operation is left out because Python writes it otherwise."""
    patterns = set()
    for name in service_model().shape_names:
        pattern = service_model().shape_for(name).metadata.get("pattern")
        if pattern:
            patterns.add(pattern)
    for pattern in patterns:
        matches(pattern, "a")
        matches(pattern, "\u00e4 1\U0001f600")

    assert len(patterns) > 100


@settings(max_examples=200)
@given(st.text(max_size=20))
def test_tags_take_letters_of_every_script(text: str) -> None:
    """A class of characters is Unicode's, not Python's."""
    pattern = "([\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]*)"
    expected = all(unicodedata.category(c)[0] in "LZN" or c in "_.:/=+-@" for c in text)

    assert matches(pattern, text) is expected


@settings(max_examples=200)
@given(
    st.from_regex(
        re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,10}\n?", re.ASCII), fullmatch=True
    )
)
def test_a_name_with_a_line_end_is_refused(text: str) -> None:
    """A pattern holds for the whole text; `$` of Python forgives a line end."""
    pattern = "[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"

    assert matches(pattern, text) is not text.endswith("\n")


def test_an_error_names_field_value_rule_and_fix() -> None:
    """What is refused is said with all four."""
    with pytest.raises(UsageInvalid) as caught:
        refuse("CreateEndpoint", {"EndpointName": "a_b", "EndpointConfigNam": "a"})

    said = caught.value
    assert said.code == "job.request"
    assert "EndpointConfigName" in said.message
    assert any("did you mean `EndpointConfigName`?" in hint for hint in said.hints)
    assert any("`EndpointName` is `a_b`" in hint for hint in said.hints)


def test_an_operation_that_is_none_is_ours_to_mend() -> None:
    """A wrong name is a fault of the program."""
    with pytest.raises(ValueError, match="CreateNothing"):
        check_request("CreateNothing", {})


def test_rules_are_those_that_exist() -> None:
    """A violation has no other rule."""
    assert set(api_check.RULES) == {
        "unknown",
        "required",
        "type",
        "enum",
        "pattern",
        "min",
        "max",
        "union",
    }

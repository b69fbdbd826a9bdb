"""serving.properties: what may be written, and that both readers agree on it."""

from __future__ import annotations

import pytest

from lmi_build.errors import VerifyFailed
from lmi_build.package.layouts import djl_properties, layout_problems
from lmi_build.package.properties import (
    parse_properties,
    property_problem,
    render_properties,
)
from lmi_build.values.recipe import PackageSpec, ServeSpec
from packed import sample_recipe, sample_serving


def test_properties_are_sorted_with_engine_first() -> None:
    """The bytes do not depend on the order of the entries."""
    entries = {"option.b": "2", "engine": "Python", "option.a": "1 and 1"}

    assert render_properties(entries) == (
        b"engine=Python\noption.a=1 and 1\noption.b=2\n"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("option.a", "back\\slash"),
        ("option.a", " leading"),
        ("option.a", "trailing "),
        ("option.a", "two\nlines"),
        ("option.a", "tab\there"),
        ("option.a", "caf\u00e9"),
        ("a b", "1"),
        ("a=b", "1"),
        ("a:b", "1"),
        ("#a", "1"),
        ("!a", "1"),
        ("", "1"),
    ],
)
def test_unsafe_properties_are_refused(key: str, value: str) -> None:
    """What the two parsers could read differently is never written."""
    problem = property_problem(key, value)

    assert problem is not None
    assert problem.code == "package.unsafe-property"
    with pytest.raises(ValueError, match=r"property|value"):
        render_properties({key: value})


def test_model_id_is_refused() -> None:
    """An artifact never sends the container elsewhere for its weights."""
    problem = property_problem("option.model_id", "s3://elsewhere")

    assert problem is not None
    assert problem.code == "package.forbidden-property"


@pytest.mark.parametrize(
    "data",
    [b"a", b"a:b\n", b"a=1\na=2\n", b"# note\n", b"a =1\n", b"a=1\\\n", b"a=1\r\n"],
)
def test_ambiguous_files_are_refused(data: bytes) -> None:
    """A file of another hand is read only when there is one way to read it."""
    with pytest.raises(VerifyFailed) as caught:
        parse_properties(data)
    assert caught.value.code == "verify.properties-ambiguous"


def test_layout_owns_its_keys() -> None:
    """A backend cannot replace the entry point."""
    serving = sample_serving(properties={"option.entryPoint": "other.py"})

    with pytest.raises(ValueError, match="entryPoint"):
        djl_properties(sample_recipe(), serving)


def test_layout_problems_are_complete() -> None:
    """Every wish that cannot be packaged is named, each with a way out."""
    recipe = sample_recipe(
        package=PackageSpec(layout="triton", format="zip"),
        serve=ServeSpec(
            rolling_batch="vllm",
            environment={"A-B": "1", "OK": "two\nlines", "HF_MODEL_ID": "x"},
        ),
    )
    problems = list(layout_problems(recipe, sample_serving(properties={"a": "\\"})))

    assert sorted(problem.path for problem in problems) == [
        "compile.options",
        "package.format",
        "package.layout",
        "serve.environment.A-B",
        "serve.environment.HF_MODEL_ID",
        "serve.environment.OK",
        "serve.rolling_batch",
    ]
    assert all(problem.hint for problem in problems)
    assert list(layout_problems(sample_recipe(), sample_serving())) == []

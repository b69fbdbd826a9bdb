"""`--set a.b=c`: checked like the file, and recorded."""

from __future__ import annotations

import pytest

from lmi_build.errors import RecipeInvalid
from lmi_build.recipe.load import parse_recipe
from recipe_texts import TINY, faults


def test_overrides_win_and_are_recorded() -> None:
    """The document holds the override's value; the arguments are kept as given."""
    overrides = ("bounds.max_batch_size=8", "publish.to=s3://models/tiny")
    (recipe,) = parse_recipe(TINY, overrides=overrides)

    assert recipe.bounds.max_batch_size == 8
    assert recipe.publish is not None
    assert recipe.publish.to == "s3://models/tiny"
    assert recipe.overrides == overrides
    assert recipe.document["bounds"] == {
        "max_input_len": 64,
        "max_output_len": 32,
        "max_batch_size": 8,
        "max_beam_width": 1,
    }


def test_the_last_override_of_a_path_wins() -> None:
    """Arguments are applied in order."""
    overrides = ("bounds.max_batch_size=8", "bounds.max_batch_size=2")
    (recipe,) = parse_recipe(TINY, overrides=overrides)

    assert recipe.bounds.max_batch_size == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("verify.prompts=[one, two]", ("one", "two")),
        ("verify.prompts=['a: b']", ("a: b",)),
    ],
)
def test_values_are_yaml(override: str, expected: tuple[str, ...]) -> None:
    """Lists and quotes work as in the file."""
    (recipe,) = parse_recipe(TINY, overrides=(override,))

    assert recipe.verify.prompts == expected


def test_a_whole_section_can_be_set() -> None:
    """A mapping replaces a mapping."""
    (recipe,) = parse_recipe(TINY, overrides=("quantize={method: int8}",))

    assert recipe.quantize.method == "int8"


def test_free_sections_take_keys_with_dots() -> None:
    """Where keys are the user's own, the rest of the path is one key."""
    overrides = ("publish.to=s3://models/tiny", "publish.tags.cost.center=a=b")
    (recipe,) = parse_recipe(TINY, overrides=overrides)

    assert recipe.publish is not None
    assert recipe.publish.tags == {"cost.center": "a=b"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("bounds.max_input_len", "recipe.override-form 1:1"),
        ("=3", "recipe.override-form 1:1"),
        ("a=1\nb: 2", "recipe.override-form 1:1"),
        ("bounds..max_input_len=3", "recipe.override-path 1:1"),
        ("verify.prompts[0]=x", "recipe.override-path 1:1"),
        ("name.first=x", "recipe.override-path 1:1"),
        ("matrix.quantize.method=[gptq]", "recipe.override-path 1:1"),
        ("bounds.max_inptu_len=3", "recipe.unknown-key 1:1"),
        ("bounds.max_input_len=many", "recipe.wrong-type 1:22"),
        ("bounds.max_input_len=", "recipe.empty-value 1:1"),
        ("bounds.max_input_len=# no", "recipe.empty-value 1:1"),
        ("bounds.max_input_len=0", "recipe.out-of-range 1:22"),
        ("bounds.max_input_len=[", "recipe.syntax 1:23"),
        ("bounds.max_input_len=!!int 3", "recipe.tag 1:22"),
        ("bounds.max_input_len=&a 3", "recipe.anchor 1:22"),
        ("name=a\x00b", "recipe.control-character 1:7"),
        ("serve.environment.A_TOKEN=x", "recipe.secret 1:1"),
    ],
)
def test_faulty_overrides_have_places(override: str, expected: str) -> None:
    """The place is the argument's number and the column inside it."""
    assert faults(TINY, override) == [expected]


def test_places_of_overrides_name_the_argument() -> None:
    """The second `--set` is line 2 of a file called `--set`."""
    with pytest.raises(RecipeInvalid) as caught:
        parse_recipe(TINY, overrides=("name=fine", "name=Not Fine"))

    span = caught.value.problems[0].span
    assert span is not None
    assert (span.file, span.line, span.column) == ("--set", 2, 6)
    assert span.source == "name=Not Fine"


def test_an_override_mends_the_file() -> None:
    """What is replaced is no longer wrong."""
    assert faults(TINY.replace("64\n  max_o", "lots\n  max_o")) != []
    assert (
        faults(TINY.replace("64\n  max_o", "lots\n  max_o"), "bounds.max_input_len=64")
        == []
    )


def test_secret_overrides_are_masked() -> None:
    """A secret on the command line is not repeated by the message."""
    with pytest.raises(RecipeInvalid) as caught:
        parse_recipe(TINY, overrides=("serve.environment.HF_TOKEN=abcdefgh",))

    assert "abcdefgh" not in repr(caught.value.problems)

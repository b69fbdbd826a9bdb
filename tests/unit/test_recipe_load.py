"""A sound recipe becomes values; a faulty one tells everything at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmi_build.errors import RecipeInvalid, Span
from lmi_build.recipe.load import MAX_PROBLEMS, load_recipe, parse_recipe
from lmi_build.recipe.template import starter
from lmi_build.values.bounds import Bounds
from lmi_build.values.recipe import CalibrationSpec, Gates
from recipe_texts import TINY, faults

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*.yaml")), ids=lambda p: p.name)
def test_shipped_recipes_load(path: Path) -> None:
    """Every recipe in the repository is sound."""
    recipes = load_recipe(path)

    assert all(recipe.compile.backend for recipe in recipes)


def test_quickstart_recipe_says_what_it_means() -> None:
    """Values arrive where the stages read them."""
    (recipe,) = load_recipe(RECIPES / "smollm2-135m" / "gptq.onnxruntime.cpu.yaml")
    spec = recipe.quantize

    assert recipe.name == "smollm2-135m-gptq-cpu"
    assert (spec.method, spec.bits, spec.group_size, spec.sym) == ("gptq", 4, 64, True)
    assert spec.calibration == CalibrationSpec(num_samples=64, max_seq_len=512, seed=0)
    assert recipe.bounds == Bounds(
        max_input_len=512, max_output_len=128, max_batch_size=4
    )
    assert recipe.verify.gates == Gates(
        max_perplexity_ratio=1.15, max_mean_kl=0.16, min_top1_agreement=0.80
    )
    assert recipe.publish is None


@pytest.mark.parametrize(
    ("method", "bits", "group_size", "calibrated"),
    [
        ("none", 16, -1, False),
        ("int8", 8, -1, False),
        ("gptq", 4, 128, True),
        ("awq", 4, 128, True),
        ("smoothquant", 8, -1, True),
    ],
)
def test_defaults_belong_to_the_method(
    method: str, bits: int, group_size: int, *, calibrated: bool
) -> None:
    """What a recipe leaves open is closed at the door, per method."""
    text = TINY.replace("gptq\n  group_size: 64", method)
    (recipe,) = parse_recipe(text)
    spec = recipe.quantize

    assert (spec.bits, spec.group_size) == (bits, group_size)
    assert (spec.calibration is not None) == calibrated


def test_no_quantize_section_is_method_none() -> None:
    """A recipe without `quantize` keeps its weights."""
    text = TINY.replace("quantize:\n  method: gptq\n  group_size: 64\n", "")
    (recipe,) = parse_recipe(text)

    assert recipe.quantize.method == "none"
    assert recipe.document["quantize"] == {"method": "none"}


def test_verify_defaults_stay_within_the_bounds() -> None:
    """Verification never asks by default for more than the engine promises."""
    text = TINY.replace("64\n  max_output_len: 32", "48\n  max_output_len: 8")
    (recipe,) = parse_recipe(text)

    assert recipe.verify.max_seq_len == 48
    assert recipe.verify.max_new_tokens == 8


def test_revision_defaults_only_on_a_hub() -> None:
    """A folder has no revision to resolve."""
    (hub,) = parse_recipe(TINY)
    (folder,) = parse_recipe(TINY.replace("owner/tiny", "./tiny"))
    documents = [recipe.document["model"] for recipe in (hub, folder)]

    assert [isinstance(d, dict) and d.get("revision") for d in documents] == [
        "main",
        None,
    ]


def test_spans_point_at_values() -> None:
    """Later stages can place what they find in the user's own text."""
    (recipe,) = parse_recipe(TINY, file="r.yaml")

    assert recipe.spans["bounds.max_input_len"] == Span(
        file="r.yaml", line=9, column=18, length=2, source="  max_input_len: 64"
    )
    assert recipe.spans["bounds"].line == 8


def test_all_problems_come_at_once_in_file_order() -> None:
    """One run shows everything, over all sections, sorted by place."""
    text = (
        TINY.replace("name: tiny", "name: Tiny")
        .replace("max_input_len: 64", "max_input_len: many")
        .replace("source: owner/tiny", "source: ./tiny\n  revision: main")
        + "verify: {max_new_tokens: x}\npublish: {to: ./a, region: us-east-1}\n"
    )

    assert faults(text) == [
        "recipe.name 2:7",
        "recipe.unused-option 5:13",
        "recipe.wrong-type 10:18",
        "recipe.wrong-type 14:26",
        "recipe.unused-option 15:28",
    ]


def test_a_typo_of_a_required_key_is_one_problem() -> None:
    """The missing key is not told beside the unknown one that is meant to be it."""
    assert faults(TINY.replace("model:", "modell:")) == ["recipe.unknown-key 3:1"]
    assert faults(TINY.replace("  source:", "  model_id:")) == [
        "recipe.renamed-key 4:3"
    ]


def test_too_many_problems_are_cut() -> None:
    """Ten thousand problems are one: the wrong file."""
    text = TINY + "".join(f"key{index}: 1\n" for index in range(150))

    with pytest.raises(RecipeInvalid) as caught:
        parse_recipe(text)

    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert caught.value.problems[-1].code == "recipe.more-problems"
    assert "50 more" in caught.value.problems[-1].message


def test_windows_line_ends_change_nothing() -> None:
    """A file from Windows gives the same recipe and the same places."""
    (unix,) = parse_recipe(TINY)
    (windows,) = parse_recipe(TINY.replace("\n", "\r\n"))

    assert unix == windows


@pytest.mark.parametrize("method", ["none", "gptq", "awq", "smoothquant", "int8"])
@pytest.mark.parametrize(
    "source", ["owner/model", "./my model", "~/m", "s3://bucket/m", "/m/x.gguf"]
)
def test_the_starter_recipe_is_sound(method: str, source: str) -> None:
    """What `init` writes loads without a problem, and says what was asked."""
    (recipe,) = parse_recipe(starter("my-model", source, method, "onnxruntime"))

    assert recipe.model.source == source
    assert recipe.quantize.method == method


def test_secrets_never_reach_a_message() -> None:
    """A credential is refused, and masked in every line that is shown."""
    secret = "hf_" + "a1B2" * 9
    text = TINY + f"serve: {{environment: {{HF_TOKEN: {secret}, N: 1}}, x: 1}}\n"

    with pytest.raises(RecipeInvalid) as caught:
        parse_recipe(text)

    shown = repr(caught.value.problems)
    assert "recipe.secret" in {problem.code for problem in caught.value.problems}
    assert len(caught.value.problems) == 3
    assert secret not in shown


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "PAD_TOKEN_ID", "DB_PASSWORD_FILE"]
)
def test_harmless_variables_are_taken(name: str) -> None:
    """Counting tokens, or naming where a secret lies, is no secret."""
    assert faults(TINY + f'serve: {{environment: {{{name}: "1"}}}}\n') == []


def test_logins_in_urls_are_masked() -> None:
    """A password inside a URL is hidden in the line that is shown."""
    text = TINY + "publish: {to: s3://m-x/t, endpoint_url: http://me:hunter2@host}\n"

    with pytest.raises(RecipeInvalid) as caught:
        parse_recipe(text)

    assert "hunter2" not in repr(caught.value.problems)

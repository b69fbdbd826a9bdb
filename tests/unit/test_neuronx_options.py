"""`compile.options` of Transformers NeuronX: what is refused, with which way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmi_build.backends.neuronx.options import (
    OURS,
    OWNED,
    REFUSED,
    lmi_option_names,
    option_problems,
)
from lmi_build.backends.neuronx.signatures import fits, neuron_config_fields
from lmi_build.catalog.neuron_releases import neuron_releases

if TYPE_CHECKING:
    from lmi_build.catalog.neuron_releases import NeuronRelease

RELEASES = [row for row in neuron_releases().values() if "tnx" in row.loaders]
NEWEST = neuron_releases()["djl-neuronx-0.30.0"]
NAMES = sorted(
    {name for row in RELEASES for name in neuron_config_fields(row.tnx_row)}
    | {*OURS, *OWNED, *REFUSED}
)
SWITCHED_ON: dict[str, Any] = {
    "context_buckets": [128, 1024],
    "cc_flags": ["-O2"],
    "compilation_worker_count": 2,
    "group_query_attention": "replicated-heads",
    "attention_layout": "BSH",
    "collectives_layout": "BSH",
    "cache_layout": "BSH",
    "all_reduce_dtype": "bfloat16",
    "cast_logits_dtype": "bfloat16",
}
# What else must be set for an option to have an effect.
NEEDS: dict[str, dict[str, Any]] = {
    "qkv_tiling": {"fuse_qkv": True},
    "fused_rmsnorm_qkv": {
        "fuse_qkv": True,
        "attention_layout": "BSH",
        "group_query_attention": "replicated-heads",
    },
}


def codes(options: dict[str, Any], release: NeuronRelease = NEWEST) -> list[str]:
    """Codes of every problem, in order."""
    return [problem.code for problem in option_problems(options, release)]


@pytest.mark.parametrize("release", RELEASES, ids=lambda row: row.name)
def test_what_can_be_told_can_be_set(release: NeuronRelease) -> None:
    """Every option that the release's loader reads is taken, with its needs."""
    for name in lmi_option_names(release):
        if name == "on_device_embedding" and release.layout == "presharded":
            assert codes({name: True}, release) == ["compile.owned-option"]
            continue
        options = {name: SWITCHED_ON.get(name, True), **NEEDS.get(name, {})}
        assert codes(options, release) == [], name


@pytest.mark.parametrize("release", RELEASES, ids=lambda row: row.name)
def test_what_cannot_be_told_cannot_be_set(release: NeuronRelease) -> None:
    """No field of NeuronConfig gets through that no property stands for."""
    told = lmi_option_names(release)
    for name, field in neuron_config_fields(release.tnx_row).items():
        if name in told or name in OURS:
            continue
        value = SWITCHED_ON.get(name, field.default)
        (code,) = codes({name: value}, release)
        assert code in {"neuronx.option-unserved", "compile.owned-option"}, name


def test_an_untold_option_names_those_that_are() -> None:
    """The hint lists what the release can be told."""
    (problem,) = option_problems({"sequence_parallel_norm": True}, NEWEST)

    assert problem.code == "neuronx.option-unserved"
    assert problem.unsupported
    assert problem.path == "compile.options.sequence_parallel_norm"
    assert "`fuse_qkv`" in problem.hint
    assert "`on_device_embedding`" not in problem.hint


@pytest.mark.parametrize("name", sorted(OWNED))
def test_a_bound_is_set_where_it_belongs(name: str) -> None:
    """Names that the recipe has a key for send there."""
    (problem,) = option_problems({name: 1}, NEWEST)

    assert problem.code == "compile.owned-option"
    assert OWNED[name] in problem.hint


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_never_set(name: str) -> None:
    """Names that would make other graphs are refused with the reason."""
    (problem,) = option_problems({name: [128]}, NEWEST)

    assert problem.code == "compile.owned-option"
    assert REFUSED[name] in problem.message


def test_a_misspelt_name_meets_its_neighbour() -> None:
    """Transformers NeuronX drops such names in silence."""
    for word, meant in (
        ("fuse_qvk", "fuse_qkv"),
        ("tp_degre", "tp_degree"),
        ("group_query_attn", "group_query_attention"),
        ("context_bucket", "context_buckets"),
    ):
        (problem,) = option_problems({word: True}, NEWEST)
        assert problem.code == "compile.unknown-option"
        assert problem.hint == f"did you mean `{meant}`?"


def test_a_field_of_another_version_says_which() -> None:
    """What a newer transformers-neuronx has is told from what none has."""
    (newer,) = option_problems({"has_pre_attention_norm": True}, NEWEST)
    (none,) = option_problems({"zzz": True}, NEWEST)

    assert "`0.13` has it" in newer.hint
    assert "it has `all_reduce_dtype`" in none.hint


@pytest.mark.parametrize(
    "options",
    [
        {"fuse_qkv": 1},
        {"attention_layout": "SBH"},
        {"group_query_attention": "shard-over-head"},
        {"cast_logits_dtype": "f32"},
        {"context_buckets": [1024, 128]},
        {"context_buckets": []},
        {"context_buckets": [0, 128]},
        {"context_buckets": [128, 128]},
        {"context_buckets": 128},
        {"context_buckets": [True, 128]},
        {"cc_flags": "-O2"},
        {"cc_flags": ["-O2 "]},
        {"compilation_worker_count": 0},
    ],
    ids=str,
)
def test_a_wrong_value(options: dict[str, Any]) -> None:
    """The message says what is allowed, the hint a line that is."""
    (problem,) = option_problems(options, NEWEST)

    assert problem.code == "compile.bad-option"
    assert "it must be" in problem.message
    assert problem.hint.startswith("write `")


def test_a_combination_that_would_be_dropped() -> None:
    """Alone the option would vanish, or stop the compilation after hours."""
    (problem,) = option_problems({"fused_rmsnorm_qkv": True}, NEWEST)

    assert problem.code == "neuronx.swallowed-option"
    assert problem.path == "compile.options.fused_rmsnorm_qkv"
    assert "`attention_layout` to be BSH" in problem.message
    assert codes({"fused_rmsnorm_qkv": True, **NEEDS["fused_rmsnorm_qkv"]}) == []


def test_an_option_of_one_class_only() -> None:
    """Mistral's class does not fuse its feed-forward weights, its graph would."""
    options: dict[str, Any] = {"fuse_mlp": True}

    (problem,) = option_problems(options, NEWEST, model_type="mistral")
    assert problem.code == "neuronx.swallowed-option"
    assert "`llama`" in problem.message
    assert list(option_problems(options, NEWEST, model_type="llama")) == []
    assert list(option_problems(options, NEWEST)) == []


@given(
    st.sampled_from(RELEASES),
    st.dictionaries(
        st.one_of(st.sampled_from(NAMES), st.text(max_size=12)),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-2, 4096),
            st.sampled_from(["BSH", "HSB", "SBH", "bfloat16", "replicated-heads", ""]),
            st.lists(st.integers(-1, 4096), max_size=3),
            st.lists(st.text(max_size=3), max_size=2),
        ),
        max_size=5,
    ),
)
def test_what_gets_through_fits(
    release: NeuronRelease, options: dict[str, Any]
) -> None:
    """No options make it crash, and those without a problem fit their fields."""
    problems = list(option_problems(options, release, model_type="llama"))

    faulty = {problem.path.partition("compile.options.")[2] for problem in problems}
    assert faulty <= set(options)
    fields = {**neuron_config_fields(release.tnx_row), **OURS}
    for name in set(options) - faulty:
        assert fits(fields[name], options[name])
        assert name in OURS or name in release.options


def test_another_loader_is_a_fault_of_the_caller() -> None:
    """These are the options of NeuronConfig."""
    with pytest.raises(ValueError, match="nxdi"):
        list(option_problems({}, NEWEST, "nxdi"))

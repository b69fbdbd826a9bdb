"""Constructors of transformers-neuronx: the data, its reader, what is dropped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmi_build.backends.neuronx import signatures as module
from lmi_build.backends.neuronx.models import neuron_models
from lmi_build.backends.neuronx.signatures import (
    CONFIGS,
    Field,
    class_arguments,
    fits,
    neuron_config_fields,
    signatures,
    swallowed,
)
from lmi_build.catalog.neuron_releases import neuron_releases

ROWS = list(signatures())
FUSED = {"attention_layout": "BSH", "group_query_attention": "replicated-heads"}


def every_field() -> list[tuple[str, str, Field]]:
    """Each argument of each class of each version."""
    return [
        (row.name, section, field)
        for row in signatures().values()
        for section, group in {**row.configs, **row.classes}.items()
        for field in group.values()
    ]


def test_every_image_has_a_row() -> None:
    """A release with transformers-neuronx finds its signatures, at its version."""
    for release in neuron_releases().values():
        if release.transformers_neuronx:
            row = signatures()[release.tnx_row]
            assert row.version == release.transformers_neuronx


def test_every_model_has_its_class() -> None:
    """What a row has classes for is what models.toml says of it."""
    for row in signatures().values():
        for name, model in neuron_models().items():
            if "tnx" in model.loaders and model.loaders["tnx"].reached(row.version):
                assert "amp" in class_arguments(row.name, name)
                assert "tp_degree" in class_arguments(row.name, name)


def test_defaults_and_choices_fit() -> None:
    """An argument takes its default and each of its choices, and no other word."""
    for row, section, field in every_field():
        where = (row, section, field.name)
        assert field.required or fits(field, field.default), where
        assert all(fits(field, choice) for choice in field.choices), where
        assert not fits(field, object()), where
        assert field.kind != "choice" or not fits(field, "no such choice"), where


@given(st.sampled_from(every_field()), st.integers())
def test_a_number_is_no_switch(found: tuple[str, str, Field], number: int) -> None:
    """Whole numbers fit where whole numbers or floats are meant, nowhere else."""
    field = found[2]

    assert fits(field, number) == (field.kind in {"int", "float"})
    assert fits(field, [number]) == (
        field.kind == "ints" or (field.many and field.kind in {"int", "float"})
    )
    assert not fits(field, number > 0) or field.kind == "bool"


def test_what_changed_between_versions() -> None:
    """Landmarks, as the sources have them."""
    assert [row.unknown for row in signatures().values()] == [
        *["ignored"] * 2,
        *["refused"] * 4,
    ]
    assert [n for n, row in signatures().items() if row.cpu_compile] == ["0.13"]
    assert [n for n, row in signatures().items() if row.sharded_weights] == [
        "0.12",
        "0.13",
    ]
    assert signatures()["0.11"].continuous_field == "batch_size_for_shared_caches"
    assert signatures()["0.12"].continuous_field == "max_num_seqs"
    assert len(neuron_config_fields("0.13")) == 35
    assert "fuse_mlp" not in neuron_config_fields("0.11")
    assert neuron_config_fields("0.12")["shard_over_sequence"].models == ("llama",)


def test_which_classes_drop_names() -> None:
    """Llama, Mistral and Mixtral take any name without a word."""
    for row in signatures().values():
        dropping = {n for n, how in row.leftovers.items() if how == "ignored"}
        assert dropping == {"llama", "mistral", "mixtral"} & set(row.classes)


def test_a_fused_norm_that_would_be_dropped() -> None:
    """0.12 refuses the combination, 0.13 drops it, and neither says what is missing."""
    config = {"fused_rmsnorm_qkv": True, "fuse_qkv": True}

    (refused,) = swallowed("0.12", config)
    (dropped,) = swallowed("0.13", config)

    assert "is refused" in refused
    assert "has no effect" in dropped
    assert "`attention_layout` to be BSH" in dropped
    assert "`group_query_attention` to be replicated-heads" in dropped
    assert list(swallowed("0.13", {**config, **FUSED})) == []
    assert list(swallowed("0.13", {**config, **FUSED, "sequence_parallel_norm": True}))


@pytest.mark.parametrize("row", ROWS)
def test_defaults_are_never_dropped(row: str) -> None:
    """A configuration of defaults asks for nothing, so nothing can be lost."""
    defaults = {
        name: field.default for name, field in neuron_config_fields(row).items()
    }

    assert list(swallowed(row, {})) == []
    assert (
        list(swallowed(row, {n: v for n, v in defaults.items() if v is not None})) == []
    )


def test_other_combinations() -> None:
    """Each rule once, met and not met."""
    assert list(swallowed("0.11", {"qkv_tiling": True}))
    assert not list(swallowed("0.11", {"qkv_tiling": True, "fuse_qkv": True}))
    assert list(swallowed("0.12", {"shard_over_sequence": True, "cache_layout": "BSH"}))
    assert not list(swallowed("0.12", {"shard_over_sequence": True}))
    assert list(swallowed("0.12", {"sequence_parallel_norm_threshold": 64}))
    assert list(swallowed("0.13", {"duplicate_q_weight_sos": True}))
    order = "mlp_in_weight_tiling_permute_order"
    tiled = {"weight_tiling": True}
    assert not list(swallowed("0.12", {**tiled, order: [2, 1, 3, 0]}))
    assert list(swallowed("0.12", {**tiled, order: [3, 2, 1, 0]}))
    assert list(swallowed("0.12", {order: [2, 1, 3, 0]}))
    both = {"continuous_batching": True, "padding_side": "left"}
    assert list(swallowed("0.12", both))


def test_no_config_is_missing_in_the_newest() -> None:
    """0.13 has every configuration class."""
    assert set(signatures()["0.13"].configs) == set(CONFIGS)


def test_faults_of_the_data_name_the_row() -> None:
    """A wrong table is told by file, row and word."""
    head = {
        "version": "1.0",
        "source": "a test",
        "unknown": "refused",
        "continuous_field": "",
        "cpu_compile": False,
        "sharded_weights": False,
    }
    whole = {**head, "x": {"a": {"kind": "int"}}, "leftovers": {"x": "ignored"}}
    base = {"0.1": module._row("0.1", whole, {})}
    for table, words in (
        ({**head, "base": "0.0"}, "`base` is '0.0'"),
        ({**head, "base": "0.1", "removes": {"x": ["b"]}}, "`removes` has"),
        ({**head, "base": "0.1", "x": {"a": {"kind": "int"}}}, "says what '0.1' says"),
        ({**head, "base": "0.1", "y": {}}, "`leftovers` lacks"),
        ({**head, "base": "0.1", "leftovers": {"y": "ignored"}}, "`leftovers` has"),
        ({**head, "base": "0.1", "leftovers": {"x": "kept"}}, "`leftovers` has"),
        ({**head, "unknown": "taken"}, "`unknown` has"),
        ({**head, "cpu_compile": 1}, "`cpu_compile` is 1"),
        ({**head, "base": "0.1", "x": {"c": {"kind": "number"}}}, "kind 'number'"),
        ({**head, "base": "0.1", "x": {"c": {"kind": "choice"}}}, "is a choice with"),
        ({**head, "base": "0.1", "x": {"c": {"kind": "object"}}}, "is a object of"),
        (
            {**head, "base": "0.1", "x": {"c": {"kind": "int", "default": "1"}}},
            "default '1'",
        ),
        ({**head, "base": "0.1", "x": {"c": {"kind": "int", "max": 1}}}, "unknown"),
    ):
        with pytest.raises(ValueError, match=r"signatures\.toml: \[0\.2\]") as caught:
            module._row("0.2", table, base)
        assert words in str(caught.value)

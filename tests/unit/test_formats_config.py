"""What `quantization_config` says, and what is read of other tools' files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from formats import Shape, scheme
from lmi_build.checkpoint.formats.config import float_linears, quantization_config
from lmi_build.checkpoint.formats.config_reader import read_scheme
from lmi_build.checkpoint.formats.layout import (
    checkpoint_plans,
    kv_cache_plans,
    packing_of,
    refusals,
    width_problem,
)
from lmi_build.errors import Unsupported
from lmi_build.values.recipe import QuantSpec

if TYPE_CHECKING:
    from lmi_build.values.quant import QuantScheme

W8A8 = scheme(
    "int-quantized",
    activation_bits=8,
    activation_dtype="int",
    activation_scheme="dynamic",
)
SCHEMES = [
    scheme("gptq"),
    scheme("gptq", weight_bits=3, group_size=-1, sym=False, act_order=True),
    scheme("gptq_v2", weight_bits=8),
    scheme("awq", group_size=-1),
    scheme("pack-quantized", kv_cache_dtype="fp8"),
    scheme("pack-quantized", weight_bits=8, group_size=-1, sym=False),
    W8A8,
    replace(W8A8, activation_scheme="static", kv_cache_dtype="int8"),
    replace(W8A8, weight_dtype="float", packing="float-quantized"),
    scheme("float-quantized", granularity="tensor"),
]


@pytest.mark.parametrize("form", SCHEMES, ids=str)
def test_a_scheme_is_read_as_it_was_written(form: QuantScheme) -> None:
    """`read_scheme` undoes `quantization_config`."""
    if form.activation_bits == 8 and form.weight_dtype == "float":
        form = replace(form, activation_dtype="float")
    config = quantization_config(form, left=("lm_head",), method="m")

    assert read_scheme(config) == form


def test_what_stays_float_is_named_for_every_reader() -> None:
    """Each family has its own list, all of them with full names."""
    left = ("lm_head", "model.layers.1.mlp.down_proj")
    gptq = quantization_config(scheme("gptq"), left=left, method="gptq")
    awq = quantization_config(scheme("awq"), left=left, method="awq")
    dense = quantization_config(W8A8, left=left, method="int8")

    assert gptq["dynamic"] == {r"-:^model\.layers\.1\.mlp\.down_proj$": {}}
    assert gptq["modules_to_not_convert"] == ["model.layers.1.mlp.down_proj"]
    assert gptq["lm_head"] is False
    assert awq["modules_to_not_convert"] == list(left)
    assert dense["ignore"] == list(left)


def test_what_is_quantized_is_named_by_its_ending() -> None:
    """Readers match endings: short ones unless a kept layer has the same."""
    linears = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]

    def endings(left: str) -> object:
        config = quantization_config(
            scheme("gptq"), left=("lm_head", left), linears=linears, method="gptq"
        )
        return config["modules_in_block_to_quantize"]

    assert endings("model.layers.0.mlp.gate") == [["mlp.up_proj"]]
    assert endings("model.layers.2.mlp.up_proj") == [linears]


def test_float_linears_are_found_by_shape() -> None:
    """Routers and the head count; tables, norms and what is quantized do not."""
    shapes = {
        "model.embed_tokens.weight": ("bfloat16", (32, 8)),
        "model.norm.weight": ("bfloat16", (8,)),
        "model.layers.0.mlp.gate.weight": ("bfloat16", (4, 8)),
        "model.layers.0.mlp.up_proj.weight": ("bfloat16", (16, 8)),
        "embed_out.weight": ("bfloat16", (32, 8)),
    }

    found = float_linears(shapes, ["model.layers.0.mlp.up_proj"])

    assert found == ("embed_out", "lm_head", "model.layers.0.mlp.gate")


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
WEIGHTS = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
DENSE = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
}


def _group(**changes: Any) -> dict[str, Any]:
    group = {**DENSE["config_groups"]["group_0"], **changes}  # type: ignore[index]
    return {**DENSE, "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ({**GPTQ, "desc_act": True}, {"act_order": True, "packing": "gptq"}),
        ({**GPTQ, "desc_act": True, "static_groups": True}, {"act_order": False}),
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, {"packing": "gptq_v2"}),
        ({**GPTQ, "format": "gptq_v2"}, {"packing": "gptq_v2"}),
        ({**GPTQ, "dynamic": {"-:lm_head": {}}}, {"packing": "gptq"}),
        ({**AWQ, "version": "GEMM"}, {"packing": "awq", "sym": False}),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, {"group_size": 64}),
        (_group(), {"group_size": -1, "activation_bits": 16, "granularity": "channel"}),
        (_group(weights={"num_bits": 8}), {"granularity": "tensor"}),
        (
            _group(
                input_activations={"num_bits": 8, "dynamic": True, "strategy": "token"}
            ),
            {"activation_scheme": "dynamic", "activation_bits": 8},
        ),
        (
            _group(input_activations={"num_bits": 8, "strategy": "tensor"}),
            {"activation_scheme": "static"},
        ),
        (
            {**_group(), "kv_cache_scheme": {"num_bits": 8, "type": "float"}},
            {"kv_cache_dtype": "fp8"},
        ),
    ],
    ids=str,
)
def test_other_tools_files_are_read(
    config: dict[str, Any], changes: dict[str, Any]
) -> None:
    """As gptqmodel, AutoAWQ and llm-compressor spell them."""
    found = read_scheme(config)

    assert {name: getattr(found, name) for name in changes} == changes


@pytest.mark.parametrize(
    ("config", "entry"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method: bitsandbytes"),
        ({}, "quant_method: None"),
        ({**GPTQ, "bits": 5}, "bits: 5"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format: marlin"),
        ({**GPTQ, "dynamic": {"+:.*down": {"bits": 8}}}, r"dynamic: +:.*down"),
        ({**GPTQ, "pack_dtype": "int16"}, "pack_dtype: int16"),
        ({**AWQ, "version": "gemv"}, "version: gemv"),
        ({**AWQ, "bits": 8}, "bits: 8"),
        ({**DENSE, "format": "nvfp4-pack-quantized"}, "format: nvfp4"),
        ({**DENSE, "config_groups": {}}, "config_groups: 0 groups"),
        ({**DENSE, "sparsity_config": {"format": "sparse-24"}}, "sparsity_config"),
        (_group(weights={**WEIGHTS, "strategy": "block"}), "weights.strategy: block"),
        (_group(output_activations={"num_bits": 8}), "output_activations"),
        (_group(input_activations={"num_bits": 4}), "input_activations"),
        (
            _group(
                input_activations={"num_bits": 8, "dynamic": True, "strategy": "tensor"}
            ),
            "input_activations.strategy: tensor",
        ),
        (
            {**_group(), "kv_cache_scheme": {"num_bits": 4}},
            "kv_cache_scheme",
        ),
    ],
    ids=str,
)
def test_what_is_not_read_is_refused_by_name(
    config: dict[str, Any], entry: str
) -> None:
    """The message says which entry is in the way."""
    with pytest.raises(Unsupported) as caught:
        read_scheme(config)

    assert caught.value.code == "checkpoint.scheme"
    assert entry in caught.value.message


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "gptq", "group_size": 128},
        {**GPTQ, "bits": "four"},
        {**GPTQ, "bits": True},
        {**DENSE, "config_groups": []},
        {**DENSE, "config_groups": {"group_0": {}}},
        _group(weights=None),
    ],
    ids=str,
)
def test_a_broken_configuration_is_no_stack_trace(config: dict[str, Any]) -> None:
    with pytest.raises(Unsupported) as caught:
        read_scheme(config)

    assert caught.value.code == "checkpoint.scheme"


@pytest.mark.parametrize(
    ("spec", "bits", "packing"),
    [
        (QuantSpec(method="gptq"), 4, "gptq"),
        (QuantSpec(method="awq"), 4, "awq"),
        (QuantSpec(method="awq"), 8, "gptq"),
        (QuantSpec(method="int8"), 8, "gptq"),
        (QuantSpec(method="int8", activations="dynamic"), 8, "int-quantized"),
        (QuantSpec(method="smoothquant"), 8, "int-quantized"),
        (QuantSpec(method="fp8"), 8, "float-quantized"),
        (QuantSpec(method="gptq", format="compressed-tensors"), 4, "pack-quantized"),
        (QuantSpec(method="gptq", format="gptq_v2"), 4, "gptq_v2"),
        (QuantSpec(method="gptq", kv_cache_dtype="fp8"), 4, "pack-quantized"),
    ],
    ids=str,
)
def test_a_recipe_has_one_packing(spec: QuantSpec, bits: int, packing: str) -> None:
    assert packing_of(spec, bits=bits) == packing


@pytest.mark.parametrize(
    ("form", "fmt", "field"),
    [
        (scheme("awq", weight_bits=8), "auto", "bits"),
        (scheme("pack-quantized", weight_bits=3), "auto", "bits"),
        (scheme("awq", act_order=True), "auto", "format"),
        (scheme("pack-quantized", act_order=True), "auto", "format"),
        (scheme("gptq", kv_cache_dtype="fp8"), "auto", "kv_cache_dtype"),
        (scheme("gptq", scale_dtype="bfloat16"), "auto", "format"),
        (scheme("float-quantized", group_size=64), "auto", "group_size"),
        (replace(W8A8, group_size=64), "auto", "group_size"),
        (replace(W8A8, sym=False), "auto", "sym"),
        (W8A8, "gptq", "format"),
    ],
    ids=str,
)
def test_a_scheme_without_a_place_is_refused(
    form: QuantScheme, fmt: str, field: str
) -> None:
    """The refusal names the key of the recipe that is in the way."""
    assert field in [refusal.field for refusal in refusals(form, fmt=fmt)]


def test_a_scheme_with_a_place_is_not_refused() -> None:
    assert [refusals(form) for form in SCHEMES] == [[]] * len(SCHEMES)


@pytest.mark.parametrize(
    ("shape", "form", "message"),
    [
        (Shape(num_inputs=48), scheme("gptq"), "48 % 32 = 16"),
        (Shape(num_outputs=12), scheme("awq"), "12 output channels; 4-bit"),
        (Shape(num_outputs=12), scheme("gptq"), "12 output channels"),
        (Shape(num_inputs=12), scheme("gptq", group_size=-1), "12 input channels"),
        (
            Shape(num_inputs=48),
            scheme("gptq", group_size=-1, weight_bits=3),
            "32 at a time",
        ),
        (
            Shape(num_outputs=12),
            scheme("pack-quantized", sym=False),
            "12 output channels",
        ),
        (Shape(num_outputs=12), scheme("pack-quantized"), None),
        (Shape(num_inputs=12), scheme("awq", group_size=-1), None),
        (Shape(num_inputs=13, num_outputs=7), W8A8, None),
    ],
    ids=str,
)
def test_widths_that_do_not_fill_words_are_refused(
    shape: Shape, form: QuantScheme, message: str | None
) -> None:
    problem = width_problem(shape, form)

    assert (problem is None) if message is None else message in str(problem)


def test_every_tensor_of_the_result_is_planned() -> None:
    """What is quantized is replaced, the rest stays, extra tensors come on top."""
    shapes = {
        "m.weight": ("bfloat16", (32, 64)),
        "m.bias": ("bfloat16", (32,)),
        "norm.weight": ("bfloat16", (64,)),
    }

    plans = checkpoint_plans(shapes, [Shape()], W8A8, kv_cache_plans(["attn"]))

    assert [(plan.name, plan.dtype) for plan in plans] == [
        ("m.weight", "int8"),
        ("m.weight_scale", "float16"),
        ("m.bias", "bfloat16"),
        ("norm.weight", "bfloat16"),
        ("attn.k_scale", "float32"),
        ("attn.v_scale", "float32"),
    ]

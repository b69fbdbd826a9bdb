"""What is advised when a gate is missed: chosen by the recipe and by what was seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lmi_build.checkpoint.layers import Layer, Layers
from lmi_build.numerics.compare import Drift
from lmi_build.values.quant import QuantScheme
from lmi_build.values.recipe import CalibrationSpec, QuantSpec
from lmi_build.verify.advice import advice, quant_spec, worst_lines

DRIFT = Drift(
    num_windows=8,
    num_tokens=4096,
    max_abs_logit_error=3.0,
    mean_kl=0.3,
    mean_kl_standard_error=0.01,
    mean_kl_interval=None,
    top1_agreement=0.8,
    top1_agreement_interval=None,
    reference_perplexity=10.0,
    engine_perplexity=12.0,
    perplexity_ratio_interval=None,
)
SCHEME = QuantScheme(
    weight_bits=4,
    weight_dtype="int",
    group_size=128,
    sym=True,
    activation_bits=16,
    packing="gptq",
)
W8A8 = replace(SCHEME, weight_bits=8, group_size=-1, activation_bits=8)


def _layers(*errors: float | None, width: int = 256) -> Layers:
    return Layers(
        layers=tuple(
            Layer(
                name=f"model.layers.{index}.mlp.down_proj",
                shape=(64, width),
                bits=4,
                num_bytes=64 * width // 2,
                error=error,
            )
            for index, error in enumerate(errors)
        ),
        classes=(),
    )


EVEN = _layers(0.01, 0.011, 0.012, 0.01)
GPTQ = QuantSpec(method="gptq", bits=4, group_size=128)


def _said(
    spec: QuantSpec, scheme: QuantScheme = SCHEME, layers: Layers | None = EVEN
) -> str:
    return "\n".join(advice(spec, scheme, layers, DRIFT))


@pytest.mark.parametrize(
    ("spec", "scheme", "wanted"),
    [
        (QuantSpec(method="rtn", bits=4), SCHEME, "`quantize.method: gptq`"),
        (replace(GPTQ, desc_act=False), SCHEME, "`quantize.desc_act: true`"),
        (
            replace(GPTQ, true_sequential=False),
            SCHEME,
            "`quantize.true_sequential: true`",
        ),
        (GPTQ, SCHEME, "`quantize: {method: awq, then_gptq: true}`"),
        (QuantSpec(method="awq", bits=4), SCHEME, "`quantize.then_gptq: true`"),
        (GPTQ, SCHEME, "`quantize.group_size: 64` (now 128)"),
        (GPTQ, replace(SCHEME, group_size=-1), "128` (now a whole row)"),
        (
            QuantSpec(method="int8", activations="static"),
            W8A8,
            "`quantize.method: smoothquant`",
        ),
        (
            QuantSpec(method="smoothquant", activations="static"),
            W8A8,
            "`quantize.activations: dynamic`",
        ),
        (
            QuantSpec(method="smoothquant", smoothing_strength=0.8),
            W8A8,
            "(now 0.8)",
        ),
        (
            QuantSpec(method="fp8", granularity="tensor"),
            replace(W8A8, weight_dtype="float"),
            "`quantize.granularity: channel`",
        ),
        (
            QuantSpec(method="smoothquant"),
            W8A8,
            "`quantize: {method: int8, activations: none}`",
        ),
    ],
)
def test_the_recipe_chooses(spec: QuantSpec, scheme: QuantScheme, wanted: str) -> None:
    assert wanted in _said(spec, scheme)


def test_a_group_divides_the_inputs_whichever_way_a_weight_lies() -> None:
    layers = _layers(0.01, 0.01, width=192)
    scheme = replace(SCHEME, group_size=-1)

    straight = "\n".join(advice(GPTQ, scheme, layers, DRIFT))
    transposed = "\n".join(advice(GPTQ, scheme, layers, DRIFT, transposed=True))

    # [64, 192]: 192 inputs, or 64 of them.
    assert "`quantize.group_size: 64` (now a whole row)" in straight
    assert "`quantize.group_size: 64` (now a whole row)" in transposed
    narrow = _layers(0.01, 0.01, width=96)
    assert "group_size: 32`" in "\n".join(advice(GPTQ, scheme, narrow, DRIFT))
    turned = advice(GPTQ, scheme, narrow, DRIFT, transposed=True)
    assert "group_size: 64`" in "\n".join(turned)


def test_what_is_done_already_is_not_advised() -> None:
    """No step names the value that the recipe has."""
    best = replace(
        QuantSpec(method="awq", then_gptq=True, bits=4, group_size=32),
        calibration=CalibrationSpec(dataset="mine.jsonl", num_samples=512),
    )
    scheme = replace(SCHEME, group_size=32, sym=False)

    assert advice(best, scheme, EVEN, DRIFT) == (
        "`quantize.method: int8`: 8 bits a weight",
    )


def test_group_sizes_divide_every_layer() -> None:
    """A width of 96 is not divided by 64."""
    assert "group_size: 32" in _said(GPTQ, layers=_layers(0.01, 0.01, width=96))
    assert "group_size" not in _said(GPTQ, layers=_layers(0.01, 0.01, width=80))


def test_layers_that_stand_out_are_named_with_their_price() -> None:
    """Twelve times the median: ignore it, for the bytes that float weights cost."""
    layers = _layers(0.01, 0.01, 0.01, 0.12)
    said = _said(GPTQ, layers=layers)
    price = 64 * 256 * 2 - 64 * 256 // 2

    assert "ignore: [lm_head, model.layers.3.mlp.down_proj]`: up to 12 times" in said
    assert f"{price / 1024:.1f} KiB more" in said
    assert "ignore" not in _said(GPTQ)


def test_a_head_that_stands_out_has_a_key_of_its_own() -> None:
    """`ignore` does not keep it in float; `lm_head: false` does."""
    plain = _layers(0.01, 0.01, 0.01, 0.12)
    (worst,) = [layer for layer in plain.layers if layer.error == 0.12]
    layers = replace(
        plain,
        layers=tuple(
            replace(x, name="lm_head") if x is worst else x for x in plain.layers
        ),
    )
    said = _said(replace(GPTQ, lm_head=True), layers=layers)

    assert "`quantize.lm_head: false`: its error is among the largest" in said
    assert "ignore" not in said


def test_calibration_is_raised_to_a_number() -> None:
    said = _said(replace(GPTQ, calibration=CalibrationSpec(max_seq_len=256)))

    assert "`quantize.calibration.num_samples: 256` (now 64 of 256 tokens)" in said


def test_loss_of_the_engine_itself_is_told() -> None:
    """Nothing quantized: no quantization is advised; a rounded head is named."""
    scheme = replace(SCHEME, packing="none", weight_bits=16)
    said = advice(QuantSpec(), scheme, None, DRIFT, options={"lm_head_dtype": "int8"})

    assert "lm_head_dtype: float32" in said[0]
    assert "nothing was quantized" in said[1]
    assert len(said) == 2


def test_worst_layers_are_listed_by_error() -> None:
    head, *rows = worst_lines(_layers(0.01, 0.04, None, 0.03, 0.02, 0.05, 0.06))

    assert "of 7 layers, median 0.035" in head
    assert [row.split(":")[0].split(".")[2] for row in rows] == [
        "6",
        "5",
        "1",
        "3",
        "4",
    ]
    assert "0.06, 28.6% of all" in rows[0]
    assert worst_lines(None) == ()
    assert worst_lines(_layers(None)) == ()


def test_the_recipes_document_becomes_a_spec() -> None:
    """As a manifest has it: nulls are defaults, foreign keys are left out."""
    spec = quant_spec(
        {
            "method": "gptq",
            "bits": 4,
            "ignore": ["a", "b"],
            "smoothing_strength": None,
            "calibration": {"num_samples": 8, "later": 1},
            "later": 2,
        }
    )

    assert spec == QuantSpec(
        method="gptq",
        bits=4,
        ignore=("a", "b"),
        calibration=CalibrationSpec(num_samples=8),
    )

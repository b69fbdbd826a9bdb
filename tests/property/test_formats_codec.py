"""Laws of the checkpoint formats: bits where they belong, and every number back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from formats import Shape, random_codes, same_codes, scheme, slow_parts
from lmi_build.checkpoint.formats.codec import (
    Codes,
    NotRepresentable,
    decode,
    encode,
    pack_linear,
    weight_of,
)
from lmi_build.checkpoint.formats.layout import (
    BITS,
    SCALE_DTYPES,
    linear_plans,
    refusals,
    width_problem,
)
from lmi_build.checkpoint.header import TensorEntry
from lmi_build.checkpoint.writer import tensor_plan
from lmi_build.errors import SourceInvalid
from lmi_build.numerics.gptq import Quantized
from lmi_build.values.quant import PACKINGS, QuantScheme

WRITTEN = PACKINGS[1:]


@st.composite
def schemes(draw: st.DrawFn) -> QuantScheme:
    """Any scheme that a packing can hold."""
    packing = draw(st.sampled_from(WRITTEN))
    compressed = packing.endswith("-quantized")
    grouped = packing != "float-quantized"
    group_size = draw(st.sampled_from([-1, 16, 32, 64] if grouped else [-1]))
    form = scheme(
        packing,
        weight_bits=draw(st.sampled_from(BITS[packing])),
        group_size=group_size,
        sym=packing == "float-quantized" or draw(st.booleans()),
        scale_dtype=draw(st.sampled_from(SCALE_DTYPES[packing])),
        act_order="gptq" in packing and group_size > 0 and draw(st.booleans()),
        granularity=draw(st.sampled_from(["channel", "tensor"]))
        if compressed and group_size == -1 and packing != "pack-quantized"
        else "channel",
    )
    if form.granularity == "tensor":
        form = replace(form, sym=True)
    assert not refusals(form)
    return form


@st.composite
def linears(draw: st.DrawFn) -> tuple[Shape, QuantScheme]:
    """A scheme and a layer whose widths it can pack."""
    form = draw(schemes())
    shape = Shape(
        num_outputs=32 * draw(st.integers(1, 2)),
        num_inputs=64 * draw(st.integers(1, 2)),
    )
    assert width_problem(shape, form) is None
    return shape, form


@given(linears(), st.integers(0, 1000))
def test_decoding_undoes_encoding(linear: tuple[Shape, QuantScheme], seed: int) -> None:
    """Every code, scale, zero point and group comes back as it went in."""
    shape, form = linear
    codes = random_codes(shape, form, seed=seed)

    tensors = encode("m", codes, slice(None), form, group_I=codes.group_I)

    assert same_codes(decode(tensors, "m", form), codes)


@given(linears(), st.integers(0, 1000))
def test_the_plan_is_what_is_written(
    linear: tuple[Shape, QuantScheme], seed: int
) -> None:
    """Names, dtypes and shapes are those that the planner counted."""
    shape, form = linear
    codes = random_codes(shape, form, seed=seed)
    tensors = encode("m", codes, slice(None), form, group_I=codes.group_I)

    found = {tensor_plan(name, tensor) for name, tensor in tensors.items()}

    assert found == set(linear_plans(shape, form))


@given(linears(), st.integers(0, 1000))
def test_every_bit_lies_where_the_format_says(
    linear: tuple[Shape, QuantScheme], seed: int
) -> None:
    """Words equal those of a packer that goes bit by bit."""
    shape, form = linear
    shape = replace(shape, num_outputs=32, num_inputs=64)
    codes = random_codes(shape, form, seed=seed)
    tensors = encode("m", codes, slice(None), form, group_I=codes.group_I)

    for part, wanted in slow_parts(codes, form).items():
        found = tensors[f"m.{part}"]
        found = found.view(torch.uint8) if wanted.dtype == np.uint8 else found
        assert found.numpy().astype(wanted.dtype).tolist() == wanted.tolist(), part


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten().view(torch.uint8)


@pytest.mark.parametrize("packing", WRITTEN)
def test_one_linear_is_cut_from_a_group(packing: str) -> None:
    """A slice of outputs is encoded as if it had been alone."""
    form = scheme(packing)
    codes = random_codes(Shape(num_outputs=64), form)
    part = Codes(
        code_IO=codes.code_IO[:, 32:],
        scale_GO=codes.scale_GO[:, 32:],
        zero_GO=codes.zero_GO[:, 32:],
    )

    cut = encode("m", codes, slice(32, 64), form)

    assert all(
        torch.equal(bytes_of(cut[name]), bytes_of(alone))
        for name, alone in encode("m", part, slice(None), form).items()
    )


def test_a_weight_is_code_less_zero_times_scale() -> None:
    """Also where channels of a group do not lie together."""
    form = scheme("gptq", sym=False, act_order=True)
    codes = random_codes(Shape(), form)
    assert codes.group_I is not None
    weight = weight_of(codes)

    for i in (0, 17, 63):
        group = int(codes.group_I[i])
        wanted = (codes.code_IO[i].float() - codes.zero_GO[group]) * codes.scale_GO[
            group
        ]
        assert torch.equal(weight[:, i], wanted)


def test_a_static_activation_has_its_scale() -> None:
    """`input_scale` is one float32 number of the linear's own row."""
    form = scheme("int-quantized", activation_bits=8, activation_dtype="int")
    form = replace(form, activation_scheme="static")
    codes = random_codes(Shape(), form)
    tensors = encode("m", codes, slice(None), form, input_scale=torch.tensor(0.25))

    assert tensors["m.input_scale"].tolist() == [0.25]
    with pytest.raises(ValueError, match="no input scale"):
        encode("m", codes, slice(None), form)


def _changed(codes: Codes, **changes: torch.Tensor) -> Codes:
    return replace(codes, **changes)


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        (
            scheme("gptq", sym=False),
            {"zero_GO": torch.zeros(2, 32, dtype=torch.uint8)},
            "zero points of 0",
        ),
        (
            scheme("gptq_v2"),
            {"zero_GO": torch.full((2, 32), 7, dtype=torch.uint8)},
            "other than 8",
        ),
        (
            scheme("awq"),
            {"code_IO": torch.full((64, 32), 16, dtype=torch.uint8)},
            "above 15",
        ),
        (
            scheme("pack-quantized", scale_dtype="bfloat16"),
            {"scale_GO": torch.full((2, 32), 1.0009765625)},
            "not bfloat16 numbers, such as 1.0009765625",
        ),
    ],
    ids=["zero", "sym", "bits", "scale"],
)
def test_what_a_format_would_change_is_refused(
    form: QuantScheme, change: dict[str, torch.Tensor], message: str
) -> None:
    """Nothing is rounded, wrapped or dropped on the way to disk."""
    codes = _changed(random_codes(Shape(), form), **change)

    with pytest.raises(NotRepresentable, match=message):
        encode("m", codes, slice(None), form)


def test_activation_order_has_no_place_in_awq() -> None:
    codes = random_codes(Shape(), scheme("gptq_v2", act_order=True))

    with pytest.raises(NotRepresentable, match="activation order"):
        encode("m", codes, slice(None), scheme("awq"), group_I=codes.group_I)


def test_zero_points_of_old_releases_are_read() -> None:
    """Before 0.9, compressed-tensors kept zero points as plain signed bytes."""
    form = scheme("pack-quantized", sym=False)
    codes = random_codes(Shape(), form, zeros_from=0)
    tensors = encode("m", codes, slice(None), form)
    tensors["m.weight_zero_point"] = (codes.zero_GO.T.to(torch.int16) - 8).to(
        torch.int8
    )

    assert same_codes(decode(tensors, "m", form), codes)


def test_activation_order_of_old_releases_is_read() -> None:
    """Before 0.19, compressed-tensors had a group index."""
    form = scheme("pack-quantized", act_order=True)
    codes = random_codes(Shape(), form)
    tensors = encode("m", codes, slice(None), form, group_I=codes.group_I)

    assert same_codes(decode(tensors, "m", form), codes)
    assert codes.group_I is not None
    tensors["m.weight_g_idx"] = torch.full((64,), -1, dtype=torch.int32)
    assert decode(tensors, "m", form).group_I is None


def test_padded_words_are_read() -> None:
    """compressed-tensors fills the last word of a row up; `weight_shape` tells."""
    form = scheme("pack-quantized", group_size=-1)
    codes = random_codes(Shape(num_inputs=64), form)
    tensors = encode("m", codes, slice(None), form)
    tensors["m.weight_shape"] = torch.tensor([32, 60])

    assert torch.equal(decode(tensors, "m", form).code_IO, codes.code_IO[:60])


@pytest.mark.parametrize("packing", WRITTEN)
def test_a_missing_tensor_is_named(packing: str) -> None:
    """A checkpoint that lacks a part says which."""
    form = scheme(packing)
    tensors = encode("m", random_codes(Shape(), form), slice(None), form)
    for name in tensors:
        if name == "m.g_idx":
            continue
        rest = {key: value for key, value in tensors.items() if key != name}
        with pytest.raises(SourceInvalid, match=f"no tensor `{name[2:]}`") as caught:
            decode(rest, "m", form)
        assert caught.value.code == "checkpoint.format"


@pytest.mark.parametrize("packing", WRITTEN)
def test_a_tensor_of_another_shape_is_refused(packing: str) -> None:
    """A cut tensor never decodes to something."""
    form = scheme(packing)
    tensors = encode("m", random_codes(Shape(), form), slice(None), form)
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            continue
        with pytest.raises(SourceInvalid) as caught:
            decode({**tensors, name: tensor[:-1]}, "m", form)
        assert caught.value.code == "checkpoint.format"


def test_a_ledger_row_comes_with_the_tensors() -> None:
    """The row names what was written; its error is relative to the output."""
    form = scheme("awq")
    codes = random_codes(Shape(), form)
    quantized = Quantized(
        code_IO=codes.code_IO,
        scale_GO=codes.scale_GO,
        zero_GO=codes.zero_GO,
        error_O=torch.ones(32),
        power_O=torch.full((32,), 4.0),
        damp_percent=0.01,
    )
    entry = TensorEntry(
        name="m.weight", dtype="bfloat16", shape=(32, 64), begin=0, end=4096
    )

    tensors, row = pack_linear(entry, quantized, slice(0, 16), form)

    assert (row.source, row.action, row.error) == ("m.weight", "quantized", 0.25)
    assert [item.name for item in row.results] == list(tensors)
    assert tensors["m.scales"].shape == (2, 16)

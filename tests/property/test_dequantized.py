"""A quantized folder read as floats is what its numbers mean, tensor by tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file

from formats import Shape, quantize_folder_as, random_codes, scheme, write_folder
from lmi_build.checkpoint.formats.codec import weight_of
from lmi_build.checkpoint.formats.dequantized import (
    DequantizedReader,
    is_quantized,
    write_dequantized,
)
from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.errors import SourceInvalid, Unsupported
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

PACKINGS = (
    "gptq",
    "gptq_v2",
    "awq",
    "pack-quantized",
    "int-quantized",
    "float-quantized",
)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    packing=st.sampled_from(PACKINGS),
    seed=st.integers(0, 1000),
    act_order=st.booleans(),
    sym=st.booleans(),
)
def test_each_linear_is_codes_less_zero_points_times_scales(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    packing: str,
    seed: int,
    act_order: bool,
    sym: bool,
) -> None:
    """Bit for bit, in float32, beside tensors that pass through."""
    classic = packing in {"gptq", "gptq_v2"}
    free = packing in {"gptq", "gptq_v2", "pack-quantized", "awq"}
    form = scheme(
        packing,
        act_order=act_order and classic,
        sym=sym if free and packing != "awq" else packing != "awq",
    )
    codes = random_codes(Shape(), form, seed=seed)
    folder = tmp_path_factory.mktemp("folder") / "checkpoint"
    write_folder(folder, {"model.layers.0.q_proj": codes}, form)

    with DequantizedReader(folder) as reader:
        names = set(reader.tensors)
        found = reader.read("model.layers.0.q_proj.weight")
        entry = reader.entry("model.layers.0.q_proj.weight")
        bias = reader.read("model.layers.0.q_proj.bias")

    assert torch.equal(found, weight_of(codes))
    assert (entry.dtype, entry.shape) == ("float32", tuple(found.shape))
    assert bias.dtype == torch.bfloat16
    assert names == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.kept.weight",
        "model.layers.0.q_proj.weight",
        "model.layers.0.q_proj.bias",
    }


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_written_float_model_has_every_tensor(packing: str, tmp_path: Path) -> None:
    """It is an ordinary folder, and says nothing of quantization."""
    model = make_tiny_model(tmp_path / "model")
    dense = quantize_folder_as(model, tmp_path / "quantized", scheme(packing))
    out = tmp_path / "float"
    out.mkdir()

    write_dequantized(tmp_path / "quantized", out)

    assert is_quantized(tmp_path / "quantized")
    assert not is_quantized(out)
    before, after = (load_file(x / "model.safetensors") for x in (model, out))
    assert set(before) == set(after)
    for name, tensor in after.items():
        layer = name.removesuffix(".weight")
        assert torch.equal(tensor, dense.get(layer, before[name]))
    assert (out / "tokenizer.json").is_file()
    with CheckpointReader(out) as reader:
        assert len(reader.tensors) == len(before)


def test_what_is_not_read_is_refused(tmp_path: Path) -> None:
    """A float folder has no scheme; a tensor that is missing is named."""
    model = make_tiny_model(tmp_path / "model")

    assert not is_quantized(model)
    with pytest.raises(Unsupported) as caught:
        DequantizedReader(model)
    assert caught.value.code == "checkpoint.scheme"
    with pytest.raises(SourceInvalid) as broken:
        is_quantized(tmp_path / "nowhere")
    assert broken.value.code == "checkpoint.format"

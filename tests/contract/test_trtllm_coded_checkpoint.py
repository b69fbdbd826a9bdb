"""Where codes go otherwise than for most: Hopper, experts, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.utils import logging

import tiny_architectures
from lmi_build.checkpoint.formats.codec import decode, weight_of
from lmi_build.checkpoint.formats.config_reader import read_scheme
from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.errors import LmiBuildError, Unsupported
from lmi_build.values.recipe import QuantSpec
from make_tiny_model import _write_tokenizer
from stage_jobs import quantize
from trtllm_models import convert
from trtllm_reader import _weight_only, read_model

if TYPE_CHECKING:
    from pathlib import Path

# The last release that takes linears of any width.
VERSION = "0.12.0"
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "num_hidden_layers": 2,
    "vocab_size": 322,
}
METHODS: dict[str, tuple[QuantSpec, dict[str, Any]]] = {
    "groups": (
        QuantSpec(method="rtn", bits=4, group_size=64, sym=False),
        {"quant_algo": "W4A16_AWQ", "group_size": 64, "has_zero_point": True},
    ),
    "int8": (QuantSpec(method="int8"), {"quant_algo": "W8A16"}),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A llama by every method, as `quantize` leaves it."""
    logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("coded")
    folder = root / "float"
    folder.mkdir()
    model = tiny_architectures.build("llama", **SIZES).to(torch.float16)
    model.save_pretrained(folder)
    _write_tokenizer(folder, 320)
    return {
        method: quantize(root / method, folder, spec)
        for method, (spec, _) in METHODS.items()
    }


def test_hopper_gets_floats(sources: dict[str, Path], tmp_path: Path) -> None:
    """Its weight-only order differs by release, so `trtllm-build` rounds itself."""
    source, algorithm = sources["int8"], METHODS["int8"][1]

    out = convert(
        source,
        tmp_path / "out",
        dtype="float16",
        version=VERSION,
        algorithm=algorithm,
        compute_capability="9.0",
    )

    assert "W8A16" in (out / "config.json").read_text()
    assert read_model(out).coded == {}


def test_groups_that_ranks_cut_are_refused(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(LmiBuildError) as caught:
        convert(
            sources["groups"],
            tmp_path / "out",
            dtype="float16",
            version=VERSION,
            tp=8,
            algorithm=METHODS["groups"][1],
        )

    assert caught.value.code == "trtllm.layout"
    assert "8 ranks get 32 inputs each" in caught.value.message
    assert list((tmp_path / "out").iterdir()) == []


def test_a_plan_for_other_weights_is_refused(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(LmiBuildError) as caught:
        convert(sources["int8"], tmp_path / "out", version=VERSION)

    assert caught.value.code == "trtllm.other-algorithm"


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts in 8-bit weights."""
    root = tmp_path_factory.mktemp("mixture")
    (root / "float").mkdir()
    options = {**SIZES, "num_local_experts": 3}
    model = tiny_architectures.build("mixtral", **options).to(torch.float16)
    model.save_pretrained(root / "float")
    _write_tokenizer(root / "float", 320)
    return quantize(root / "int8", root / "float", QuantSpec(method="int8"))


@pytest.mark.parametrize("ranks", [(1, 1), (2, 2)])
def test_codes_of_experts_come_back(
    mixture: Path, tmp_path: Path, ranks: tuple[int, int]
) -> None:
    """Each expert of each rank is what its codes mean, in the kernels' order."""
    out = convert(
        mixture,
        tmp_path / "out",
        dtype="float16",
        version=VERSION,
        tp=ranks[0],
        pp=ranks[1],
        algorithm=METHODS["int8"][1],
    )

    files = [load_file(out / f"rank{rank}.safetensors") for rank in range(ranks[0])]
    scheme = read_scheme(
        json.loads((mixture / "config.json").read_text())["quantization_config"]
    )
    block = "model.layers.0.block_sparse_moe.experts"
    with CheckpointReader(mixture) as reader:
        for expert in range(3):
            up, gate, down = (
                _meant(reader, f"{block}.{expert}.{part}", scheme)
                for part in ("w3", "w1", "w2")
            )
            shares = [_expert(file, "fc", expert).chunk(2) for file in files]
            assert torch.equal(torch.cat([share[0] for share in shares]), up)
            assert torch.equal(torch.cat([share[1] for share in shares]), gate)
            beside = [_expert(file, "proj", expert) for file in files]
            assert torch.equal(torch.cat(beside, dim=1), down)


def _meant(reader: CheckpointReader, module: str, scheme: Any) -> torch.Tensor:
    parts = {x: reader.read(x) for x in reader.tensors if x.startswith(module)}
    return weight_of(decode(parts, module, scheme))


def _expert(file: dict[str, torch.Tensor], part: str, expert: int) -> torch.Tensor:
    """One expert's weights, read as if it were a linear of its own."""
    name = f"transformer.layers.0.mlp.{part}"
    own = {
        key: file[f"{name}.{key}"][expert] for key in ("weight", "per_channel_scale")
    }
    return _weight_only(own, "W8A16", {"dtype": "float16"}).weight()


def test_experts_of_four_bits_are_refused(mixture: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="cannot be W4A16_AWQ"):
        convert(mixture, tmp_path / "out", algorithm=METHODS["groups"][1])

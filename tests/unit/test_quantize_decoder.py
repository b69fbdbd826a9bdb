"""Our block computes what transformers computes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmi_build.catalog.architectures import architectures
from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.errors import Unsupported
from lmi_build.quantizers.decoder import Block, read_config, rotary_tables
from lmi_build.quantizers.targets import find_architecture
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"rope_scaling": LLAMA3}),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    ("llama", {"num_key_value_heads": 4}),
    ("mistral", {}),
    ("qwen2", {}),
]


@pytest.mark.parametrize(("architecture", "options"), CASES)
def test_blocks_equal_transformers(
    architecture: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """
    In float32, the states after every block agree to 2e-5, over several query tiles.

    That is a few hundred float32 roundings of numbers near one.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = make_tiny_model(
        tmp_path, architecture=architecture, dtype="float32", num_layers=3, **options
    )
    config = json.loads((folder / "config.json").read_text())
    ids = torch.arange(2 * 300).view(2, 300) % 500
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    caught: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(
            lambda _m, _i, out: caught.append(out[0] if isinstance(out, tuple) else out)
        )
    with torch.inference_mode():
        model(ids)
        arch = find_architecture(config)
        assert arch is not None
        numbers = read_config(config)
        rotary = rotary_tables(numbers, ids.shape[1], torch.float32)
        with CheckpointReader(folder) as reader:
            x_SLD = reader.read(f"{arch.embedding}.weight")[ids]
            for index, expected in enumerate(caught):
                prefix = f"{arch.block(index)}."
                parts = {
                    name.removeprefix(prefix): reader.read(name)
                    for name in reader.tensors
                    if name.startswith(prefix)
                }
                block = Block(
                    architecture=arch,
                    config=numbers,
                    weights={
                        k.removesuffix(".weight"): v
                        for k, v in parts.items()
                        if k.endswith(".weight")
                    },
                    biases={
                        k.removesuffix(".bias"): v
                        for k, v in parts.items()
                        if k.endswith(".bias")
                    },
                    rotary=rotary,
                )
                x_SLD = block.forward(x_SLD)

                assert torch.allclose(x_SLD, expected, atol=2e-5, rtol=2e-5)
    assert len(caught) == 3


def test_every_architecture_names_its_source() -> None:
    """A map says where it was read, and its parts are distinct."""
    for name, arch in architectures().items():
        assert arch.name == name
        assert arch.source
        assert len(set(arch.linears)) == len("qkvogud")


BASE = {
    "num_attention_heads": 4,
    "hidden_size": 64,
    "max_position_embeddings": 128,
}


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ({"rope_parameters": {"rope_type": "yarn"}}, "quantize.rope"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "quantize.rope"),
        ({"partial_rotary_factor": 0.5}, "quantize.rope"),
        ({"hidden_act": "relu6"}, "quantize.activation"),
    ],
)
def test_what_is_not_known_is_refused(extra: dict[str, Any], code: str) -> None:
    """A block we would compute wrongly is refused by name."""
    with pytest.raises(Unsupported) as caught:
        read_config({**BASE, **extra})

    assert caught.value.code == code


def test_configs_of_transformers_four_are_read() -> None:
    """`rope_theta` beside `rope_scaling` means what `rope_parameters` means."""
    old = read_config({**BASE, "rope_theta": 5e5, "rope_scaling": LLAMA3})
    new = read_config({**BASE, "rope_parameters": {"rope_theta": 5e5, **LLAMA3}})

    assert old == new

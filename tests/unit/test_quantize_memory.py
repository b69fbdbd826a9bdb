"""What quantizing needs of memory, and when it goes to disk instead."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from lmi_build.errors import DoesNotFit
from lmi_build.quantizers.memory import (
    BASE_BYTES,
    FLOAT_BYTES,
    H_COPIES,
    W_COPIES,
    MemoryNeed,
    available_bytes,
    decide_spill,
    walk_need,
)
from lmi_build.quantizers.options import Options
from lmi_build.quantizers.targets import Linear
from lmi_build.units import GiB, MiB

if TYPE_CHECKING:
    from pathlib import Path

NEED = MemoryNeed(
    block_bytes=100 * MiB,
    work_bytes=200 * MiB,
    activation_bytes=GiB,
    chunk_bytes=10 * MiB,
    largest="model.layers.0.mlp.down_proj",
)


def linears(num_layers: int, width: int, inner: int) -> list[Linear]:
    """A Llama's linears."""
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width, width),
        "self_attn.v_proj": (width, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    return [
        Linear(
            name=f"model.layers.{index}.{name}",
            block=f"model.layers.{index}",
            num_outputs=shape[0],
            num_inputs=shape[1],
        )
        for index in range(num_layers)
        for name, shape in shapes.items()
    ]


def need(
    num_layers: int, *, method: str = "gptq", num_tokens: int = 32768
) -> MemoryNeed:
    """What a walk through a model of one width needs."""
    return walk_need(
        linears(num_layers, 1024, 4096),
        options=Options(method=method, bits=4, group_size=64),
        num_tokens=num_tokens,
        seq_len=512,
        hidden_size=1024,
        item_bytes=2,
    )


def test_depth_costs_no_memory_and_tokens_cost_by_the_token() -> None:
    """One block is in memory at a time; activations grow with the tokens only."""
    assert need(8) == need(32)
    grown = need(8, num_tokens=65536)
    assert grown.activation_bytes == 2 * need(8).activation_bytes
    assert grown.spilled_bytes == need(8).spilled_bytes


def test_the_largest_layer_is_the_one_with_the_widest_input() -> None:
    """H of the down projection is what hurts, and the message names it."""
    found = need(2)

    assert found.largest == "model.layers.0.mlp.down_proj"
    matrices = H_COPIES["gptq"] * 4096**2 + W_COPIES * 4096 * 1024
    assert found.work_bytes == FLOAT_BYTES * matrices


def test_a_method_without_data_needs_neither_samples_nor_hessians() -> None:
    """Rounding looks at one layer's weights."""
    found = need(8, method="rtn")

    assert found.activation_bytes == found.block_bytes == 0
    assert found.work_bytes < need(8).work_bytes


def test_a_70b_model_fits_into_32_gib_with_its_activations_on_disk() -> None:
    """Widths of a 70B Llama, 64 x 512 tokens, bfloat16."""
    shapes = {
        "q_proj": (8192, 8192),
        "k_proj": (1024, 8192),
        "v_proj": (1024, 8192),
        "o_proj": (8192, 8192),
        "gate_proj": (28672, 8192),
        "up_proj": (28672, 8192),
        "down_proj": (8192, 28672),
    }
    layers = [
        Linear(
            name=f"model.layers.{index}.{name}",
            block=f"model.layers.{index}",
            num_outputs=shape[0],
            num_inputs=shape[1],
        )
        for index in range(80)
        for name, shape in shapes.items()
    ]
    found = walk_need(
        layers,
        options=Options(method="gptq", bits=4, group_size=128),
        num_tokens=64 * 512,
        seq_len=512,
        hidden_size=8192,
        item_bytes=2,
    )

    assert found.spilled_bytes < 32 * GiB * 0.9


@pytest.mark.parametrize(
    ("limit", "spills"),
    [
        (NEED.held_bytes, False),
        (NEED.held_bytes - 1, True),
        (NEED.spilled_bytes, True),
    ],
)
def test_activations_go_to_disk_only_when_they_must(
    limit: int, *, spills: bool
) -> None:
    """The budget decides, to the byte."""
    assert decide_spill(NEED, limit_bytes=limit, stated=True) is spills


@pytest.mark.parametrize("stated", [True, False])
def test_less_than_the_largest_layer_is_refused(*, stated: bool) -> None:
    """The error has both numbers, names the layer and says what to do."""
    with pytest.raises(DoesNotFit) as caught:
        decide_spill(NEED, limit_bytes=BASE_BYTES, stated=stated)

    error = caught.value
    assert error.code == "quantize.memory"
    assert "`model.layers.0.mlp.down_proj`" in str(error)
    assert "352.0 MiB" in str(error)
    assert ("--memory" in error.hints[0]) is stated


def test_a_container_limits_what_is_free(tmp_path: Path) -> None:
    """The smaller of the machine's and the container's rest counts."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    4194304 kB\n")
    limit, usage = tmp_path / "memory.max", tmp_path / "memory.current"
    limit.write_text(f"{3 * GiB}\n")
    usage.write_text(f"{2 * GiB}\n")
    files = ((str(limit), str(usage)),)

    assert available_bytes(meminfo, ()) == 4 * GiB
    assert available_bytes(meminfo, files) == GiB
    limit.write_text("max\n")
    assert available_bytes(meminfo, files) == 4 * GiB
    assert available_bytes(tmp_path / "none", files) > 1 << 60


def test_memory_that_cannot_be_had_is_told_before_the_first_block() -> None:
    """The largest layer's share is taken once; a limit of the process refuses it."""
    code = (
        "import resource\n"
        "from lmi_build.quantizers.calibrated import _try_largest\n"
        "from lmi_build.quantizers.memory import MemoryNeed\n"
        "from lmi_build.errors import DoesNotFit\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "need = MemoryNeed(block_bytes=0, work_bytes=16 << 30, activation_bytes=0,"
        " chunk_bytes=0, largest='mlp.down_proj')\n"
        "try:\n    _try_largest(need)\n"
        "except DoesNotFit as error:\n    print(error.code, error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("quantize.memory ")
    assert "16.0 GiB" in done.stdout
    assert "`mlp.down_proj`" in done.stdout

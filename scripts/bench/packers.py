"""
Whether our packed words are those of the libraries that defined the formats.

    python scripts/bench/packers.py --gptqmodel PYTHON --autoawq PYTHON \
        --compressed-tensors PYTHON

Each `PYTHON` is the interpreter of an environment with that library; what is not given
is left out. Weights that lie exactly on a grid are given to the library's own packer
there, so its rounding finds our codes again, and every word it writes is compared with
ours: all bits, symmetric and not, groups and whole rows.

Exits with 1 when a word differs.

Legend: I input channels, O output channels, G groups of I.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from lmi_build.values.quant import QuantScheme

NUM_INPUTS, NUM_OUTPUTS = 256, 96

# What runs in a peer's environment: it needs nothing of ours. Every case has a weight
# [O, I], scales [G, O] and zero points [G, O], all float32.
GPTQMODEL = """
import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

def pack(case):
    w, scale, zero = case["weight"], case["scale"], case["zero"]
    linear = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    linear.weight.data = w
    size = w.shape[1] // scale.shape[0]
    layer = TorchLinear(
        bits=case["bits"], group_size=size, sym=case["sym"], desc_act=False,
        in_features=w.shape[1], out_features=w.shape[0], bias=False,
        register_buffers=True,
    )
    groups = (torch.arange(w.shape[1]) // size).to(torch.int32)
    layer.pack_original(linear, scale.T, zero.T, groups)
    if case["packing"] == "gptq":
        layer.qzero_format(format=2)
        convert_gptq_v2_to_v1_format_module(layer, quantize_config=Config(case["bits"]))
    names = ("qweight", "qzeros", "scales", "g_idx")
    return {name: getattr(layer, name) for name in names}

class Config:
    def __init__(self, bits):
        self.bits, self.pack_dtype = bits, torch.int32
"""
AUTOAWQ = """
import torch
from awq.modules.linear.gemm import WQLinear_GEMM

def pack(case):
    w = case["weight"]
    linear = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    linear.weight.data = w
    size = w.shape[1] // case["scale"].shape[0]
    layer = WQLinear_GEMM.from_linear(
        linear, 4, size, scales=case["scale"], zeros=case["zero"])
    return {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales")}
"""
COMPRESSED_TENSORS = """
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme

def pack(case):
    scheme = QuantizationScheme.model_validate(case["config"])
    compressor = BaseCompressor.get_value_from_registry(case["packing"])
    middle = 0 if case["float8"] else 1 << (case["bits"] - 1)
    scale = case["scale"].T.contiguous()
    if case["per_tensor"]:
        scale = scale[0, :1].contiguous()
    zero = (case["zero"].T.contiguous() - middle).to(torch.int8)
    state = {"weight": case["weight"], "weight_scale": scale}
    if not case["sym"]:
        state["weight_zero_point"] = zero
    return compressor.compress(state, scheme)
"""
RUN = """
import sys
cases = torch.load(sys.argv[1])
torch.save([pack(case) for case in cases], sys.argv[2])
"""
PEERS = {
    "gptqmodel": GPTQMODEL,
    "autoawq": AUTOAWQ,
    "compressed-tensors": COMPRESSED_TENSORS,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """
    One layer for a peer.

    Args:
        peer: Who packs it.
        scheme: How.
        ours: Our tensors, by the last part of their names.
        given: What the peer is given.
    """

    peer: str
    scheme: QuantScheme
    ours: dict[str, torch.Tensor]
    given: dict[str, Any]


def schemes() -> Iterator[tuple[str, QuantScheme]]:
    """Every combination that a peer's packer takes, with the peer's name."""
    from lmi_build.values.quant import QuantScheme

    def scheme(packing: str, bits: int, group: int, **more: Any) -> QuantScheme:
        return QuantScheme(
            weight_bits=bits,
            weight_dtype="float" if packing == "float-quantized" else "int",
            group_size=group,
            activation_bits=16,
            packing=packing,
            **more,
        )

    for packing, bits, group, sym in product(
        ("gptq", "gptq_v2"), (2, 3, 4, 8), (-1, 32, 64, 128), (True, False)
    ):
        yield "gptqmodel", scheme(packing, bits, group, sym=sym)
    for group, sym in product((32, 64, 128), (True, False)):
        yield "autoawq", scheme("awq", 4, group, sym=sym)
    exact = {"scale_dtype": "float32"}
    for bits, group, sym in product((4, 8), (-1, 32, 64, 128), (True, False)):
        yield (
            "compressed-tensors",
            scheme("pack-quantized", bits, group, sym=sym, **exact),
        )
    for packing, granularity in product(
        ("int-quantized", "float-quantized"), ("channel", "tensor")
    ):
        yield (
            "compressed-tensors",
            scheme(packing, 8, -1, sym=True, granularity=granularity, **exact),
        )


def make_case(peer: str, scheme: QuantScheme, seed: int) -> Case:
    """Random codes on a scheme's grid, packed by us and described for the peer."""
    import torch

    from lmi_build.checkpoint.formats.codec import Codes, encode, weight_of
    from lmi_build.checkpoint.formats.config import quantization_config

    generator = torch.Generator().manual_seed(seed)
    group = NUM_INPUTS if scheme.group_size == -1 else scheme.group_size
    grid = (NUM_INPUTS // group, NUM_OUTPUTS)
    # Powers of two times small integers: products and quotients are exact.
    scale_GO = torch.randint(1, 64, grid, generator=generator) / 1024
    if scheme.granularity == "tensor":
        scale_GO[:] = scale_GO[0, 0].item()
    top = 1 << scheme.weight_bits
    wide = (NUM_INPUTS, NUM_OUTPUTS)
    zero_GO = torch.full(grid, top // 2, dtype=torch.uint8)
    if not scheme.sym:
        zero_GO = torch.randint(1, top, grid, generator=generator).to(torch.uint8)
    code_IO = torch.randint(0, top, wide, generator=generator).to(torch.uint8)
    float8 = scheme.weight_dtype == "float"
    if float8:
        values = torch.randn(wide, generator=generator) * 60
        code_IO, zero_GO = values.to(torch.float8_e4m3fn), torch.zeros_like(zero_GO)
    codes = Codes(code_IO=code_IO, scale_GO=scale_GO, zero_GO=zero_GO)
    given = {
        "weight": weight_of(codes),
        "scale": scale_GO,
        "zero": zero_GO.float(),
        "bits": scheme.weight_bits,
        "sym": scheme.sym,
        "packing": scheme.packing,
        "float8": float8,
        "per_tensor": scheme.granularity == "tensor",
    }
    if peer == "compressed-tensors":
        config = quantization_config(scheme, left=(), method="bench")
        given["config"] = config["config_groups"]["group_0"]
    tensors = encode("m", codes, slice(None), scheme)
    ours = {name.removeprefix("m."): tensor for name, tensor in tensors.items()}
    return Case(peer=peer, scheme=scheme, ours=ours, given=given)


def pack_by_peer(
    python: Path, peer: str, cases: list[Case]
) -> list[dict[str, torch.Tensor]]:
    """
    What the peer's packer makes of the cases.

    Raises:
        SystemExit: It failed; the end of what it said is shown.
    """
    import torch

    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "given.pt", Path(folder) / "made.pt"
        torch.save([case.given for case in cases], given)
        done = subprocess.run(
            [python, "-c", PEERS[peer] + RUN, given, made],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{peer} failed:\n{done.stderr[-3000:]}")
        found: list[dict[str, torch.Tensor]] = torch.load(made)
        return found


def differences(case: Case, theirs: dict[str, torch.Tensor]) -> list[str]:
    """Parts that are missing on one side or not the same bits."""
    import torch

    wrong = sorted(set(case.ours) ^ set(theirs))
    for part in sorted(set(case.ours) & set(theirs)):
        ours, other = case.ours[part], theirs[part]
        same = (
            ours.dtype == other.dtype
            and ours.shape == other.shape
            # Every number of these dtypes is a float64; -0.0 is not looked for.
            and torch.equal(ours.to(torch.float64), other.to(torch.float64))
        )
        wrong += [] if same else [part]
    return wrong


def main() -> None:
    """Print a line per peer; exit with 1 when a word differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    for peer in PEERS:
        parser.add_argument(f"--{peer}", type=Path, help="its interpreter")
    args = vars(parser.parse_args())
    failed = False
    for peer in PEERS:
        python = args[peer.replace("-", "_")]
        if python is None:
            continue
        cases = [
            make_case(name, scheme, seed)
            for seed, (name, scheme) in enumerate(schemes())
            if name == peer
        ]
        equal = 0
        for case, theirs in zip(cases, pack_by_peer(python, peer, cases), strict=True):
            wrong = differences(case, theirs)
            equal += not wrong
            if wrong:
                print(f"{peer}: {case.scheme}: {', '.join(wrong)} differ")
        failed |= equal < len(cases)
        print(f"{peer}: {equal} of {len(cases)} layers packed to the same bytes")
    sys.exit(failed)


if __name__ == "__main__":
    main()

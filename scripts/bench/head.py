"""
What a quantized head costs in quality, the blocks left in float.

    head.py MODEL [--count 16] [--length 512] [--bits 4] [--group-size 64 ...]

The head of a float model is rounded to nearest and by GPTQ (`quantize.lm_head`), with
the quantizer's own code, symmetric and with zero points; hidden states are those of
transformers in float32. GPTQ sees the windows that calibration draws, KL and top-1
agreement are of as many held-out ones (see `kl.py`). The first row is a head of 8 bits
in groups of 64, as `compile.options.lm_head_dtype: int8` rounds it.

Legend: T tokens, D width of the model, V words.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# `bench` is importable as the tests see it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import kl

if TYPE_CHECKING:
    from torch import Tensor

EIGHT_BITS, EIGHT_GROUP = 8, 64


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="A quantized head's quality.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, nargs="+", default=[64, 32])
    arguments = parser.parse_args()
    import torch

    with torch.inference_mode():
        rows = measure(arguments)
    print("| head | mean KL | top-1 |\n| --- | ---: | ---: |")
    for name, loss, top1 in rows:
        print(f"| {name} | {loss:.4f} | {top1:.4f} |")


def measure(arguments: argparse.Namespace) -> list[tuple[str, float, float]]:
    """Name, KL and top-1 agreement of every head."""
    from lmi_build.quantizers.calibration import held_out_text, load_tokenizer

    count, length = arguments.count, arguments.length
    model = kl.load_checkpoint(arguments.model)
    drawn = kl.calibration_windows(arguments.model, count=count, length=length)
    ids = load_tokenizer(arguments.model).encode(held_out_text()).ids
    held_out = kl.held_out_windows(ids, count=count, length=length)
    h_DD = _hessian(model, drawn)
    weight_VD = model.lm_head.weight.float()
    hidden = [_hidden(model, window) for window in held_out]

    def judge(name: str, head_VD: Tensor) -> tuple[str, float, float]:
        total, same = 0.0, 0
        for window, x_TD in zip(held_out, hidden, strict=True):
            found = kl.compare(window, x_TD @ weight_VD.T, x_TD @ head_VD.T)
            total, same = total + found[0], same + found[1]
        return name, total / count, same / (count * length)

    rows = [
        judge("8 bits, rounded", _rounded(weight_VD, None, EIGHT_BITS, EIGHT_GROUP))
    ]
    for size in arguments.group_size:
        for sym in (True, False):
            for method, seen in (("rounded", None), ("GPTQ", h_DD)):
                kind = "symmetric" if sym else "zero points"
                name = f"{arguments.bits} bits, groups of {size}, {kind}, {method}"
                head = _rounded(weight_VD, seen, arguments.bits, size, sym=sym)
                rows.append(judge(name, head))
    return rows


def _hidden(model: Any, window: list[int]) -> Tensor:
    """What the head reads: float32 [T, D]."""
    import torch

    states: Tensor = model.base_model(torch.tensor([window])).last_hidden_state[0]
    return states


def _hessian(model: Any, windows: list[list[int]]) -> Tensor:
    """X' X / T of what the head reads, [D, D]."""
    total: Any = 0
    for window in windows:
        x_TD = _hidden(model, window)
        total = total + x_TD.T @ x_TD
    mean: Tensor = total / sum(map(len, windows))
    return mean


def _rounded(
    weight_VD: Tensor, h_DD: Tensor | None, bits: int, size: int, *, sym: bool = True
) -> Tensor:
    """The head's values after rounding, [V, D]."""
    from lmi_build.numerics.grids import dequantize
    from lmi_build.quantizers.head import round_head
    from lmi_build.quantizers.options import Options
    from lmi_build.values.quant import QuantScheme

    method = "rtn" if h_DD is None else "gptq"
    options = Options(method=method, bits=bits, group_size=size, sym=sym)
    scheme = QuantScheme(
        weight_bits=bits,
        weight_dtype="int",
        group_size=size,
        sym=sym,
        activation_bits=16,
        packing="gptq",
    )
    made = round_head(weight_VD, h_DD, options, scheme)
    return dequantize(made.code_IO, made.scale_GO, made.zero_GO).T


if __name__ == "__main__":
    main()

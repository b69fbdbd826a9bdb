"""
The head as one more linear, after the last block and the norm behind it.

It is tall: a row for every word of the vocabulary. Rows are rounded one by one, so they
are taken some thousands at a time, and only their codes are kept for all of them.

A head that shares the embedding's weights becomes a matrix of its own: words are still
looked up in the float table.

Shape suffixes: I residual width, O words, V words of one piece.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lmi_build.checkpoint.formats.codec import pack_linear
from lmi_build.quantizers.decoder import Block
from lmi_build.quantizers.memory import HEAD_OUTPUTS
from lmi_build.quantizers.methods import round_weights, side_by_side
from lmi_build.quantizers.solving import BlockResult, check_used, told

if TYPE_CHECKING:
    from torch import Tensor

    from lmi_build.numerics.gptq import Quantized
    from lmi_build.quantizers.lanes import Lanes
    from lmi_build.quantizers.options import Options
    from lmi_build.quantizers.statistics import Statistics
    from lmi_build.quantizers.steps import Step
    from lmi_build.quantizers.targets import Linear
    from lmi_build.quantizers.walker import Walker
    from lmi_build.values.quant import QuantScheme


def head_step(walker: Walker, head: Linear) -> Step:
    """
    What the head reads: the residual stream behind the last norm.

    Args:
        walker: Behind the last block.
        head: The head.
    """
    arch = walker.architecture
    names = [
        f"{arch.final_norm}.{part}"
        for part in ("weight", "bias")
        if f"{arch.final_norm}.{part}" in walker.reader
    ]
    weights = {name.removesuffix(".weight"): walker.read(name) for name in names}
    # Only its number of inputs is asked for.
    weights[head.name] = torch.empty(1, head.num_inputs)
    block = Block(
        architecture=arch,
        config=walker.config,
        index=walker.config.num_layers,
        weights=weights,
    )
    return block.step(
        (head.name,),
        lambda part: block.norm(arch.final_norm, walker.x.load(part)),
        walker.parts,
        None,
    )


def solve_head(walker: Walker, head: Linear, statistics: Statistics) -> BlockResult:
    """
    Round the head by what it reads.

    Args:
        walker: Has the model, the options and the scheme.
        head: The head.
        statistics: Of what it reads.

    Raises:
        SourceInvalid: `quantize.weight-not-finite`.
        StageFailed: `quantize.unused` or `quantize.damp`.
    """
    h_II = statistics.take_hessian()
    check_used(head.name, h_II)
    weight_OI = walker.read_exact(head.source)
    with told(head.name):
        quantized = round_head(
            weight_OI, h_II, walker.options, walker.scheme, lanes=walker.lanes
        )
    del weight_OI
    tensors, row = pack_linear(
        walker.reader.entry(head.source),
        quantized,
        slice(None),
        walker.scheme,
        shared_as=head.name if head.shared else "",
    )
    rows = [replace(row, tokens=statistics.num_tokens)]
    return BlockResult(tensors=dict(tensors), rows=rows)


def round_head(
    weight_OI: Tensor,
    h_II: Tensor | None,
    options: Options,
    scheme: QuantScheme,
    *,
    lanes: Lanes | None = None,
) -> Quantized:
    """
    Put a head on its grid, a piece of its rows at a time.

    Args:
        weight_OI: In its own dtype.
        h_II: X' X / T of what it reads, for methods that need it.
        options: What the recipe decided.
        scheme: What is written.
        lanes: What parts of a piece are dealt out to.

    Raises:
        NotPositiveDefinite: H is not a product X' X.
    """
    pieces = []
    for start in range(0, weight_OI.shape[0], HEAD_OUTPUTS):
        w_IV = weight_OI[start : start + HEAD_OUTPUTS].float().T.contiguous()
        own_II = None if h_II is None else h_II.clone()
        pieces.append(round_weights(w_IV, own_II, options, scheme, lanes=lanes))
    return side_by_side(pieces)

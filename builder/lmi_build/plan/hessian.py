"""
Whether there is enough calibration text for second-order methods.

GPTQ needs H = X^T X of each layer's inputs, I x I, from T tokens. With fewer tokens
than input channels H cannot have full rank: in I - T directions only the dampening
speaks, and the columns are corrected by guesswork there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lmi_build.errors import Problem
from lmi_build.values.stage import Note

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import QuantSpec

_CODE = "calibration.few-tokens"
# Tokens of an input channel that are recommended: at four, the spread of H's
# eigenvalues by chance alone is (1 +- sqrt(1/4))^2, 0.25 to 2.25 (Marchenko, Pastur
# 1967). Refused is what leaves seven eighths of the directions to the dampening.
_GOOD_RATIO = 4
_LEAST_RATIO = 1 / 8


def hessian_advice(
    *, num_tokens: int, widest_input: int, seq_len: int, share: float = 1.0
) -> Note | Problem | None:
    """
    Judge how well T tokens determine H.

    Args:
        num_tokens: T, of all windows together.
        widest_input: I, input channels of the widest layer that is calibrated.
        seq_len: Tokens of one window, for the advice.
        share: Of the tokens that reach the layer: an even router's, for an expert.

    Returns:
        A warning below one token a channel; a problem below one for eight channels,
        if every token reaches the layer; None when there is enough.
    """
    reached = int(num_tokens * share)
    if reached >= widest_input:
        return None
    wanted = math.ceil(_GOOD_RATIO * widest_input / (seq_len * share))
    whose = f"{num_tokens:,} calibration tokens"
    if share < 1:
        whose = f"the {reached:,} of {whose} that an expert sees, evenly routed,"
    shape = (
        f"{whose} cannot determine the statistics of {widest_input:,} input channels"
    )
    if share == 1 and num_tokens < _LEAST_RATIO * widest_input:
        return Problem(
            code=_CODE,
            message=f"{shape}; at least {-(-widest_input // 8):,} are needed",
            path="quantize.calibration.num_samples",
            hint=f"raise it to {wanted} ({wanted * seq_len:,} tokens)",
        )
    return Note(
        level="warning",
        code=_CODE,
        message=f"{shape}: {widest_input - reached:,} directions are left to"
        f" `damp_percent`; `quantize.calibration.num_samples: {wanted}` would be"
        f" {_GOOD_RATIO} tokens a channel",
    )


def _advice(spec: QuantSpec, model: ModelFacts) -> Note | Problem | None:
    calibration = spec.calibration
    second_order = spec.method == "gptq" or (spec.method == "awq" and spec.then_gptq)
    if calibration is None or not second_order:
        return None
    geometry = model.geometry
    num_tokens = calibration.num_samples * calibration.max_seq_len
    heads = geometry.num_attention_heads * geometry.head_dim
    num_experts, num_chosen, inner = _experts(model)
    dense = max(geometry.hidden_size, heads)
    found = hessian_advice(
        num_tokens=num_tokens,
        widest_input=dense if num_experts else max(dense, geometry.intermediate_size),
        seq_len=calibration.max_seq_len,
    )
    if found is None and num_experts:
        found = hessian_advice(
            num_tokens=num_tokens,
            widest_input=max(geometry.hidden_size, inner),
            seq_len=calibration.max_seq_len,
            share=min(1.0, num_chosen / num_experts),
        )
    return found


def _experts(model: ModelFacts) -> tuple[int, int, int]:
    """Experts of a block, those that see a token, and the width inside one."""

    def number(*names: str) -> int:
        for name in names:
            value = model.config.get(name)
            if isinstance(value, int) and value > 0:
                return value
        return 0

    num_experts = number("num_local_experts", "num_experts", "n_routed_experts")
    num_chosen = number("num_experts_per_tok")
    if not num_experts or not num_chosen:
        return 0, 0, 0
    inner = number("moe_intermediate_size") or model.geometry.intermediate_size
    return num_experts, num_chosen, inner


def calibration_problems(spec: QuantSpec, model: ModelFacts) -> Iterator[Problem]:
    """What makes a recipe's calibration useless, before any work."""
    found = _advice(spec, model)
    if isinstance(found, Problem):
        yield found


def calibration_notes(spec: QuantSpec, model: ModelFacts) -> tuple[Note, ...]:
    """What makes a recipe's calibration doubtful."""
    found = _advice(spec, model)
    return (found,) if isinstance(found, Note) else ()

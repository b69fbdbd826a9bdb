"""
Whether there is enough calibration text for second-order methods.

GPTQ needs H = X^T X of each layer's inputs, I x I, from T tokens. With fewer tokens
than input channels H cannot have full rank: in I - T directions only the dampening
speaks, and the columns are corrected by guesswork there.
"""

from __future__ import annotations

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
    *, num_tokens: int, widest_input: int, seq_len: int
) -> Note | Problem | None:
    """
    Judge how well T tokens determine H.

    Args:
        num_tokens: T, of all windows together.
        widest_input: I, input channels of the widest layer that is calibrated.
        seq_len: Tokens of one window, for the advice.

    Returns:
        A warning below one token a channel, a problem below one for eight channels,
        None when there is enough.
    """
    if num_tokens >= widest_input:
        return None
    wanted = -(-_GOOD_RATIO * widest_input // seq_len)
    shape = (
        f"{num_tokens:,} calibration tokens cannot determine the statistics of"
        f" {widest_input:,} input channels"
    )
    if num_tokens < _LEAST_RATIO * widest_input:
        return Problem(
            code=_CODE,
            message=f"{shape}; at least {-(-widest_input // 8):,} are needed",
            path="quantize.calibration.num_samples",
            hint=f"raise it to {wanted} ({wanted * seq_len:,} tokens)",
        )
    missing = widest_input - num_tokens
    return Note(
        level="warning",
        code=_CODE,
        message=f"{shape}: {missing:,} directions are left to `damp_percent`;"
        f" `quantize.calibration.num_samples: {wanted}` would be"
        f" {_GOOD_RATIO} tokens a channel",
    )


def _advice(spec: QuantSpec, model: ModelFacts) -> Note | Problem | None:
    calibration = spec.calibration
    second_order = spec.method == "gptq" or (spec.method == "awq" and spec.then_gptq)
    if calibration is None or not second_order:
        return None
    geometry = model.geometry
    return hessian_advice(
        num_tokens=calibration.num_samples * calibration.max_seq_len,
        widest_input=max(
            geometry.hidden_size,
            geometry.intermediate_size,
            geometry.num_attention_heads * geometry.head_dim,
        ),
        seq_len=calibration.max_seq_len,
    )


def calibration_problems(spec: QuantSpec, model: ModelFacts) -> Iterator[Problem]:
    """What makes a recipe's calibration useless, before any work."""
    found = _advice(spec, model)
    if isinstance(found, Problem):
        yield found


def calibration_notes(spec: QuantSpec, model: ModelFacts) -> tuple[Note, ...]:
    """What makes a recipe's calibration doubtful."""
    found = _advice(spec, model)
    return (found,) if isinstance(found, Note) else ()

"""Whether a model's files hold what its checkpoint needs, no less and no more."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lmi_build.checkpoint.formats.layout import KV_CACHE_PARTS
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lmi_build.backends.trtllm.checkpoint_plan import RankPlan
    from lmi_build.backends.trtllm.source_model import SourceModel

# Tables and constants that older files hold and no computation reads.
_UNUSED = re.compile(r"\.(rotary_emb\.inv_freq|(attn|attention)\.(bias|masked_bias))$")
# So many names are enough in one message.
_SHOWN = 3


def source_problems(model: SourceModel, plans: Sequence[RankPlan]) -> Iterator[Problem]:
    """
    What the files lack, have in another shape, or have too much.

    Args:
        model: What is converted.
        plans: All ranks.
    """
    wanted = _wanted(plans)
    missing = sorted(name for name in wanted if name not in model.shapes)
    if missing:
        yield _listed(
            "trtllm.missing-tensor",
            missing,
            f"the model lacks {len(missing)} of {len(wanted)} tensors",
            "fetch the model again, or correct its config.json",
        )
    wrong = [
        f"{name} {list(model.shapes[name])}, expected {list(shape)}"
        for name, shape in sorted(wanted.items())
        if name in model.shapes and model.shapes[name] != shape
    ]
    if wrong:
        yield _listed(
            "trtllm.wrong-shape",
            wrong,
            f"{len(wrong)} tensors of the model have another shape than its config.json"
            " says",
            "correct config.json, or fetch the model again",
        )
    extra = sorted(set(model.shapes) - set(wanted) - set(unused(model)))
    extra = [name for name in extra if not _is_code(model, name)]
    if extra:
        yield _listed(
            "trtllm.unexpected-tensor",
            extra,
            f"`{model.row.name}` has no place for {len(extra)} tensors of the model",
            "name the right architecture in config.json, or remove the tensors",
        )


def _is_code(model: SourceModel, name: str) -> bool:
    """Whether a tensor belongs to codes: of a linear, or scales of the cache."""
    module, _, part = name.rpartition(".")
    if part in KV_CACHE_PARTS:
        return any(linear.startswith(f"{module}.") for linear in model.quantized)
    return module in model.quantized


def unused(model: SourceModel) -> tuple[str, ...]:
    """Tensors of the files that no computation reads: a tied head, old constants."""
    head = f"{model.architecture.head}.weight"
    return tuple(
        sorted(
            name
            for name in model.shapes
            if _UNUSED.search(name) or (name == head and model.tied)
        )
    )


def _wanted(plans: Sequence[RankPlan]) -> dict[str, tuple[int, ...]]:
    """Every source of a copied tensor with the shape it has to have."""
    wanted: dict[str, tuple[int, ...]] = {}
    for plan in plans:
        for tensor in plan.tensors:
            for block in tensor.blocks:
                full = block.full
                if len(tensor.shape) == 1:
                    wanted[block.source] = full[:1]
                else:
                    wanted[block.source] = full[::-1] if tensor.transposed else full
    wanted.pop("", None)
    return wanted


def _listed(code: str, names: Sequence[str], message: str, hint: str) -> Problem:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return Problem(
        code=code, message=f"{message}: {shown}{more}", path="model.source", hint=hint
    )

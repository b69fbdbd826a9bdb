"""
The weights of a model, gathered into classes of equal tensors.

A model has thousands of tensors and a dozen kinds of them; everything after this is
counted by kind, so that a thousand combinations take no longer than one did.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from lmi_build.catalog.architectures import architectures
from lmi_build.sizing.cache import kv_heads_of
from lmi_build.sizing.weights import (
    COLUMNS,
    FUSED,
    KEYS,
    ROWS,
    UNKNOWN,
    VOCABULARY,
    WHOLE,
    HeadCounts,
    WeightClass,
    WeightTable,
)
from lmi_build.values.model import DTYPE_BITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.catalog.architectures import Architecture
    from lmi_build.values.model import ModelFacts, TensorFact

    Roles = Mapping[str, tuple[str, str]]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_ATTENTION, _MLP = "attention", "mlp"
# Tables of `config.json` beside that of the text, and what they are of.
_ENCODED = {"vision": "images", "audio": "sound"}
# The last word of a module where no map knows better, as most files name them.
_USUAL: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("q_proj", "q_b_proj", "kv_b_proj"), (_ATTENTION, COLUMNS)),
    **dict.fromkeys(("k_proj", "v_proj"), (_ATTENTION, KEYS)),
    **dict.fromkeys(
        ("qkv_proj", "query_key_value", "Wqkv", "c_attn"), (_ATTENTION, FUSED)
    ),
    **dict.fromkeys(("o_proj", "out_proj", "wo"), (_ATTENTION, ROWS)),
    **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa"), (_ATTENTION, WHOLE)),
    **dict.fromkeys(
        ("gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "fc1", "wi_0", "wi_1"),
        (_MLP, COLUMNS),
    ),
    **dict.fromkeys(("down_proj", "w2", "fc2", "wo_proj"), (_MLP, ROWS)),
    **dict.fromkeys(("gate", "router"), ("router", WHOLE)),
    **dict.fromkeys(("embed_tokens", "wte", "shared"), ("embedding", VOCABULARY)),
    "lm_head": ("head", VOCABULARY),
}


def weight_table(
    facts: ModelFacts,
    linears: Mapping[str, tuple[int, int]],
    *,
    num_extra_scales: int = 0,
) -> WeightTable:
    """
    Gather the weights of a model.

    Args:
        facts: The model.
        linears: Module to (O, I) of every linear that is quantized; empty for none.
        num_extra_scales: Scales that quantizing adds for an 8-bit cache.
    """
    names = {fact.name for fact in facts.tensors}
    named = facts.config.get("architectures")
    first = named[0] if isinstance(named, list | tuple) and named else None
    found = architectures().get(str(first))
    located = found.locate(names) if found else None
    roles = _roles(located) if located else {}
    classes: Counter[WeightClass] = Counter()
    for fact in facts.tensors:
        classes[_class_of(fact, facts, linears, roles, located)] += 1
    rows = tuple(
        WeightClass(
            part=item.part,
            split=item.split,
            dtype=item.dtype,
            shape=item.shape,
            quantizable=item.quantizable,
            count=count,
        )
        for item, count in classes.items()
    )
    geometry = facts.geometry
    return WeightTable(
        classes=rows,
        heads=HeadCounts(
            num_heads=geometry.num_attention_heads,
            num_kv_heads=kv_heads_of(facts.config, geometry),
            head_dim=geometry.head_dim,
        ),
        tied=geometry.tie_word_embeddings
        or not any(item.part == "head" for item in rows),
        num_extra_scales=num_extra_scales,
        unknown=_unknown(facts, rows, mapped=located is not None),
    )


def _unknown(
    facts: ModelFacts, rows: tuple[WeightClass, ...], *, mapped: bool
) -> tuple[str, ...]:
    found = []
    if not mapped:
        found.append(
            f"`{facts.geometry.architecture}` is an architecture without a map here;"
            " its tensors are told apart by their names"
        )
    kinds = [word for word in _ENCODED if f"{word}_config" in facts.config]
    if kinds:
        told = " and ".join(_ENCODED[kind] for kind in kinds)
        found.append(
            f"it reads {told}: the weights of its encoder are counted, its results not"
        )
    lost = sum(item.count for item in rows if item.split == UNKNOWN)
    if lost:
        found.append(f"{lost} matrices have names that say nothing of how they split")
    return tuple(found)


def _roles(architecture: Architecture) -> dict[str, tuple[str, str]]:
    """Name without numbers to the part and the split of its weight."""
    block = f"{architecture.blocks}.#"
    roles: dict[str, tuple[str, str]] = {
        architecture.embedding: ("embedding", VOCABULARY),
        architecture.head: ("head", VOCABULARY),
    }
    if architecture.positions:
        roles[architecture.positions] = ("positions", WHOLE)
    wide = (architecture.gate, architecture.up, architecture.fused_gate_up)
    shared = (architecture.shared_gate, architecture.shared_up)
    for names, role in (
        ((architecture.query,), (_ATTENTION, COLUMNS)),
        ((architecture.key, architecture.value), (_ATTENTION, KEYS)),
        ((architecture.fused_qkv,), (_ATTENTION, FUSED)),
        ((architecture.output,), (_ATTENTION, ROWS)),
        ((*wide, *shared), (_MLP, COLUMNS)),
        ((architecture.down, architecture.shared_down), (_MLP, ROWS)),
        ((*architecture.router, architecture.shared_router), ("router", WHOLE)),
    ):
        roles |= {f"{block}.{name}": role for name in names if name}
    for experts in architecture.experts:
        each = f"{block}.{experts}.#"
        roles[f"{each}.{architecture.expert_gate}"] = (_MLP, COLUMNS)
        roles[f"{each}.{architecture.expert_up}"] = (_MLP, COLUMNS)
        roles[f"{each}.{architecture.expert_down}"] = (_MLP, ROWS)
    return roles


def _class_of(
    fact: TensorFact,
    facts: ModelFacts,
    linears: Mapping[str, tuple[int, int]],
    roles: Roles,
    architecture: Architecture | None,
) -> WeightClass:
    module, _, kind = fact.name.rpartition(".")
    quantized = linears.get(module) if kind == "weight" else None
    part, split = roles.get(_NUMBER.sub("#", module)) or _by_name(fact, module)
    shape = fact.shape
    is_matrix = len(shape) > 1
    if quantized is not None:
        shape = quantized
    elif kind not in {"weight", "bias"} and split not in {WHOLE, UNKNOWN}:
        # A part of a coded linear: its bytes split as its module does.
        shape = (fact.num_elements,)
    elif is_matrix and architecture is not None and architecture.transposed:
        shape = tuple(reversed(shape)) if split != VOCABULARY else shape
    if not is_matrix and split == ROWS:
        # Added once, after the ranks' results are summed.
        split = WHOLE
    return WeightClass(
        part=part,
        split=split,
        dtype=fact.dtype if fact.dtype in DTYPE_BITS else facts.dtype,
        shape=shape,
        quantizable=quantized is not None,
        count=1,
    )


def _by_name(fact: TensorFact, module: str) -> tuple[str, str]:
    """What a name says where no map has it."""
    found = _USUAL.get(module.rpartition(".")[2])
    if found is not None and (
        found[0] in {"embedding", "head"}
        or ".0." in module
        or _NUMBER.search(f"{module}.")
    ):
        return found
    if len(fact.shape) < 2:  # noqa: PLR2004 - vectors are norms and biases
        return "norm", WHOLE
    return "other", UNKNOWN

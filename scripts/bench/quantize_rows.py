"""
What `quantize.py` runs: methods of every tool under common names.

A row's name says its task, so the same name in two tools is the same task: bits, group
and symmetry are equal, everything else is each tool's own way to do it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_FOUR = {"bits": 4, "group_size": 64}
_EIGHT = {"bits": 8, "group_size": -1}
OURS: dict[str, dict[str, Any]] = {
    "rtn-sym": {"method": "rtn", **_FOUR},
    "rtn-asym": {"method": "rtn", "sym": False, **_FOUR},
    "gptq-sym": {"method": "gptq", **_FOUR},
    "gptq-sym-in-order": {"method": "gptq", "desc_act": False, **_FOUR},
    "gptq-asym": {"method": "gptq", "sym": False, **_FOUR},
    "awq-asym": {"method": "awq", "sym": False, **_FOUR},
    "awq-gptq-asym": {"method": "awq", "sym": False, "then_gptq": True, **_FOUR},
    "int8": {"method": "int8", **_EIGHT},
    "w8a8": {"method": "int8", "activations": "dynamic", **_EIGHT},
    "smoothquant": {"method": "smoothquant", "activations": "dynamic", **_EIGHT},
    "smoothquant-0.5": {
        "method": "smoothquant",
        "activations": "dynamic",
        "smoothing_strength": 0.5,
        **_EIGHT,
    },
    "fp8": {"method": "fp8", "activations": "dynamic", **_EIGHT},
}
_SYM = {"sym": True, "activations": "none"}
PEERS: dict[str, dict[str, dict[str, Any]]] = {
    "llmcompressor": {
        "gptq-sym": {"method": "gptq", "actorder": "static", **_FOUR, **_SYM},
        "gptq-sym-in-order": {"method": "gptq", "actorder": None, **_FOUR, **_SYM},
        "awq-asym": {"method": "awq", "sym": False, "activations": "none", **_FOUR},
        "int8": {"method": "int8", **_EIGHT, **_SYM},
        "w8a8": {"method": "int8", "sym": True, "activations": "dynamic", **_EIGHT},
        "smoothquant-0.5": {
            "method": "smoothquant",
            "sym": True,
            "activations": "dynamic",
            "strength": 0.5,
            **_EIGHT,
        },
    },
    "autoawq": {"awq-asym": {"method": "awq", "sym": False, **_FOUR}},
    "gptqmodel": {"gptq-sym": {"method": "gptq", "desc_act": False, **_FOUR, **_SYM}},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """
    One cell of work.

    Args:
        tool: `ours` or a peer.
        method: Name of the row; the same name is the same task in every tool.
        options: What the tool's driver is told.
        reference: Name of the model.
        model: Its folder.
        samples: Calibration windows.
        length: Tokens of one.
        seed: Of their draw.
    """

    tool: str
    method: str
    options: Mapping[str, Any]
    reference: str
    model: Path
    samples: int
    length: int
    seed: int

    @property
    def key(self) -> str:
        """Names the row in the results file and its folder."""
        shape = f"{self.samples}x{self.length}"
        return f"{self.reference}/{self.tool}/{self.method}/{shape}/seed{self.seed}"

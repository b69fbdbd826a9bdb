"""
What 8-bit weights and 8-bit activations mean, in NumPy's float64, for tests.

Independent of the library on purpose: codes are read from the checkpoint's file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class IntegerLinear(torch.nn.Module):
    """
    `y_TO = (sum_I code_TI (w_IO - zero_O)) * step_T1 * scale_O`, in float64.

    Args:
        parts: The module's tensors in the file, by their last name.
        bias: float64 [O], or None.
    """

    def __init__(self, parts: dict[str, NDArray[Any]], bias: Any) -> None:
        super().__init__()
        zero_O1 = parts.get("weight_zero_point", np.zeros((1, 1), np.int8))
        weight_OI = parts["weight"].astype(np.float64) - zero_O1.astype(np.float64)
        self._weight_OI = torch.from_numpy(weight_OI)
        self._scale_O = torch.from_numpy(parts["weight_scale"].astype(np.float64))
        self._scale_O = self._scale_O.reshape(-1)
        self._step = parts.get("input_scale")
        self._bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Args: x: float64 [.., T, I]. Returns: float64 [.., T, O]."""
        if self._step is None:
            step = x.abs().amax(dim=-1, keepdim=True) / 127
        else:
            step = torch.tensor(float(self._step.reshape(())), dtype=torch.float64)
        code = torch.nan_to_num(x / step).round().clamp(-128, 127)
        y = (code @ self._weight_OI.T) * step * self._scale_O
        return y if self._bias is None else y + self._bias


def integer_reference(model: Path, checkpoint: Path) -> tuple[Any, int]:
    """The model in float64 with each quantized linear as the checkpoint means it."""
    import transformers

    net = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    tensors = load_file(checkpoint / "model.safetensors")
    scaled = [name for name in tensors if name.endswith(".weight_scale")]
    for mark in scaled:
        name = mark.removesuffix(".weight_scale")
        parts = {
            key.removeprefix(f"{name}."): value
            for key, value in tensors.items()
            if key.startswith(f"{name}.")
        }
        parent, _, leaf = name.rpartition(".")
        owner = net.get_submodule(parent)
        bias = getattr(owner, leaf).bias
        setattr(owner, leaf, IntegerLinear(parts, bias))
    return net.eval(), len(scaled)

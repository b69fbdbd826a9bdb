"""A decoder that one of the two exporters is asked for, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.catalog.neuron_releases import NeuronRelease
    from lmi_build.digest import JSONValue
    from lmi_build.values.bounds import Bounds

# Float types by what Transformers NeuronX calls them, in PyTorch's words and in LMI's.
TORCH_DTYPES: Mapping[str, str] = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
}
LMI_DTYPES: Mapping[str, str] = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}
# What each family is called by the compiler's `--target` and by what compares it with
# the machine at start: INSTANCE_VALUE_MAP of optimum-neuron's neuron/utils/instance.py.
PLATFORMS: Mapping[str, str] = {
    "inf2": "trn1",
    "trn1": "trn1",
    "trn1n": "trn1",
    "trn2": "trn2",
}
CACHE_OFF: Mapping[str, str] = {
    # Graphs of a public cache would otherwise be taken for those of the compiler.
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class NxdRequest:
    """
    What is compiled.

    Args:
        release: Row of the catalogue.
        model_type: As `config.json` has it, such as `llama`.
        num_layers: Decoder blocks.
        bounds: The recipe's.
        tensor_parallel_size: Cores that share each layer.
        family: Of the machine that serves, such as `inf2`.
        amp: A key of `TORCH_DTYPES`.
        method: The recipe's quantization, such as `none` or `int8`.
        options: `compile.options`.

    Example:
        >>> request = NxdRequest(
        ...     release=neuron_releases()["djl-neuronx-0.30.0"],
        ...     model_type="llama",
        ...     num_layers=32,
        ...     bounds=Bounds(max_input_len=1024, max_output_len=512, max_batch_size=4),
        ...     tensor_parallel_size=8,
        ...     family="inf2",
        ...     amp="bf16",
        ... )
    """

    release: NeuronRelease
    model_type: str
    num_layers: int
    bounds: Bounds
    tensor_parallel_size: int
    family: str
    amp: str
    method: str = "none"
    options: Mapping[str, JSONValue] = field(default_factory=dict)

    @property
    def max_context_length(self) -> int:
        """Length that a prompt is padded to at most, in tokens."""
        given = self.options.get("max_context_length", self.bounds.max_input_len)
        return given if isinstance(given, int) else self.bounds.max_input_len

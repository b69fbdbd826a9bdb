"""
Hours that a build takes, as a rule of thumb by method, backend and size.

Sources: GPTQ of 175 10^9 weights in 4 hours on one A100 (arXiv:2210.17323, table 2) is
the low end of calibrated methods; slower devices and smaller layers take up to thirty
times that. Engines of 7 to 70 10^9 weights compile in minutes to an hour with
TensorRT-LLM, and in up to a few hours with neuronx-cc, whose graphs of every bucket
count (aws-neuron/aws-neuron-sdk discussions); nothing here was measured by us on those
machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.values.ranges import Range

if TYPE_CHECKING:
    from collections.abc import Mapping

_BILLION = 1e9
_HOUR_SECONDS = 3600
# Bytes a second that a model arrives and is written with.
_COPY_BYTES_PER_SECOND = Range(low=50e6, high=1e9)
# Hours for each 10^9 weights.
_QUANTIZE: Mapping[str, Range] = {
    "none": Range(low=0, high=0),
    "rtn": Range(low=0.001, high=0.03),
    "int8": Range(low=0.001, high=0.1),
    "fp8": Range(low=0.001, high=0.1),
    "smoothquant": Range(low=0.005, high=0.3),
    "gptq": Range(low=0.02, high=0.7),
    "awq": Range(low=0.01, high=0.7),
}
# Hours of any engine, and for each 10^9 weights.
_COMPILE: Mapping[str, tuple[Range, Range]] = {
    "tensorrt-llm": (Range(low=0.02, high=0.2), Range(low=0.003, high=0.03)),
    "neuronx": (Range(low=0.1, high=1.0), Range(low=0.01, high=0.1)),
    "onnxruntime": (Range(low=0.0, high=0.05), Range(low=0.005, high=0.1)),
    "aotinductor": (Range(low=0.02, high=0.2), Range(low=0.01, high=0.2)),
}


def build_hours(
    *, num_params: int, num_bytes: int, method: str, backend: str
) -> Range | None:
    """
    Hours of one build from nothing.

    Args:
        num_params: Weights of the model.
        num_bytes: Bytes of its files.
        method: Of `QuantSpec.method`.
        backend: Name of a backend.

    Returns:
        None for a method or a backend that the table has not.
    """
    if method not in _QUANTIZE or backend not in _COMPILE:
        return None
    billions = num_params / _BILLION
    base, each = _COMPILE[backend]
    copied = _COPY_BYTES_PER_SECOND.over(num_bytes / _HOUR_SECONDS)
    return copied + _QUANTIZE[method].times(billions) + base + each.times(billions)


def stage_hours(
    kind: str, *, num_params: int, num_bytes: int, method: str, backend: str
) -> Range | None:
    """
    Hours of one stage, by the same rules of thumb.

    Args:
        kind: Of the stage. What is neither `quantize` nor `compile` only copies.
        num_params: Weights of the model.
        num_bytes: Bytes that it reads or writes.
        method: Of `QuantSpec.method`.
        backend: Name of a backend.

    Returns:
        None for a method or a backend that the table has not.
    """
    billions = num_params / _BILLION
    copied = _COPY_BYTES_PER_SECOND.over(num_bytes / _HOUR_SECONDS)
    if kind == "quantize":
        rule = _QUANTIZE.get(method)
        return None if rule is None else copied + rule.times(billions)
    if kind == "compile":
        rules = _COMPILE.get(backend)
        return None if rules is None else copied + rules[0] + rules[1].times(billions)
    return copied

"""
`torch_neuronx.trace` as the real package offers it, computed by the processor.

The signature and the swallowing of unknown names are those of torch-neuronx 1.13 and
2.1; the compiler's words are checked as neuronx-cc's own parser checks them. What is
saved can be loaded and asked: its graph is the real module's, it takes the traced
shapes only, and it does not load before this package is imported, as a NEFF does not.

Source: `torch_neuronx/xla_impl/trace.py` of torch-neuronx 1.13; the signature in
"PyTorch NeuronX Tracing API for Inference" of the Neuron documentation, 2.9 to 2.28.
"""

from __future__ import annotations

import argparse
import os
import shlex
import warnings
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TARGETS = ("inf2", "trn1", "trn1n", "trn2")
_MAX_POSITIONAL = 5
# What a broken compiler does: `wrong-graph` computes something else,
# `killed` ends as the compiler does where the host has too little memory.
FAULT = os.environ.get("FAULT", "")

# PyTorch gives neither of them types.
_jit: Any = torch.jit
_library: Any = torch.library


def _fixed_shape(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    if list(x.shape) != list(shape):
        raise RuntimeError(
            f"Incorrect tensor shape at input tensor: received {list(x.shape)},"
            f" expected {list(shape)}"
        )
    return x.clone()


# Once in a process, however often this module is loaded.
if not hasattr(torch.ops.neuron, "fixed_shape"):
    LIBRARY = _library.Library("neuron", "FRAGMENT")
    LIBRARY.define("fixed_shape(Tensor x, int[] shape) -> Tensor")
    LIBRARY.impl("fixed_shape", _fixed_shape, "CompositeExplicitAutograd")
    # It must outlive this module, whose graphs may still be asked.
    setattr(torch.ops.neuron, "standin", LIBRARY)  # noqa: B010 - no known attribute


class NeuronModule(torch.nn.Module):
    """A module with a graph of fixed shapes."""

    def __init__(
        self, func: Callable[..., Any], shapes: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        self.func = func
        self.shapes = [list(shape) for shape in shapes]

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Refuse other shapes, then compute."""
        checked = [
            torch.ops.neuron.fixed_shape(tensor, shape)
            for tensor, shape in zip(tensors, self.shapes, strict=True)
        ]
        answer = self.func(*checked)
        return -answer if FAULT == "wrong-graph" else answer


def parse_compiler_args(words: Sequence[str] | str | None) -> argparse.Namespace:
    """
    Read the compiler's words as its own parser does.

    Raises:
        RuntimeError: A word is unknown or has a wrong value.
    """
    if words is None:
        words = []
    elif isinstance(words, str):
        words = shlex.split(words)
    parser = argparse.ArgumentParser(
        prog="neuronx-cc", exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--target", choices=TARGETS, default="trn1")
    parser.add_argument("--auto-cast", choices=("none", "matmult", "all"))
    parser.add_argument(
        "--auto-cast-type", choices=("bf16", "fp16", "tf32", "fp8_e4m3")
    )
    parser.add_argument("--optlevel", "-O", choices=("1", "2", "3"))
    parser.add_argument("--model-type", choices=("generic", "transformer"))
    for name in (
        "--enable-mixed-precision-accumulation",
        "--enable-saturate-infinity",
        "--enable-fast-context-switch",
        "--enable-fast-loading-neuron-binaries",
    ):
        parser.add_argument(name, action="store_true")
    parser.add_argument("--logfile")
    parser.add_argument("--verbose")
    try:
        found, unknown = parser.parse_known_args(list(words))
    except argparse.ArgumentError as error:
        raise RuntimeError(f"neuronx-cc failed with 2: {error}") from error
    if unknown:
        raise RuntimeError(f"neuronx-cc failed with 2: unrecognized {unknown}")
    return found


def trace(
    func: Callable[..., Any] | torch.nn.Module,
    example_inputs: Any,
    *_: Any,
    input_output_aliases: Mapping[Any, int] | None = None,
    compiler_workdir: str | None = None,
    compiler_args: Sequence[str] | str | None = None,
    partitioner_config: Any = None,
    inline_weights_to_neff: bool = True,
    **kwargs: Any,
) -> torch.jit.ScriptModule:
    """
    Trace a module into a graph of fixed shapes.

    Args:
        func: The module.
        example_inputs: A tensor or a tuple of them.
        input_output_aliases: Not computed here.
        compiler_workdir: Not written here.
        compiler_args: Words of neuronx-cc.
        partitioner_config: Not computed here.
        inline_weights_to_neff: Whether the weights are part of the graph.
        **kwargs: Unknown names: the real function warns and goes on.

    Raises:
        RuntimeError: Positional arguments, or words that the compiler refuses.
    """
    if len(_) > _MAX_POSITIONAL:
        raise RuntimeError(f"Received {2 + len(_)} positional arguments but expected 2")
    if kwargs:
        warnings.warn(
            f"Unexpected keyword arguments: {list(kwargs)}",
            category=UserWarning,
            stacklevel=2,
        )
    if input_output_aliases or partitioner_config is not None:
        raise NotImplementedError("states and partitions are not computed here")
    del compiler_workdir, inline_weights_to_neff
    parse_compiler_args(compiler_args)
    if FAULT == "killed":
        raise RuntimeError("neuronx-cc failed with -9")
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    module = NeuronModule(func, [tuple(tensor.shape) for tensor in inputs])
    with warnings.catch_warnings():
        # The tracer warns of each Python value in the graph; the shapes are fixed.
        warnings.simplefilter("ignore")
        found: torch.jit.ScriptModule = _jit.trace(
            module, inputs, strict=False, check_trace=False
        )
    return found


def dynamic_batch(neuron_script: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """
    Let the first dimension vary; the real one needs inlined weights.

    Raises:
        NotImplementedError: Always: no artifact of ours asks for it.
    """
    raise NotImplementedError("batches are padded to the traced size instead")


class DataParallel(torch.nn.Module):
    """
    One graph on several cores.

    Args:
        model: A traced module.
        device_ids: Cores; all by default.
        dim: Dimension that is split.
        set_dynamic_batching: Split batches that are larger than the traced one.
    """

    def __init__(
        self,
        model: torch.jit.ScriptModule,
        device_ids: Sequence[int] | None = None,
        dim: int = 0,
        set_dynamic_batching: bool = True,  # noqa: FBT001, FBT002 - the real one's
    ) -> None:
        super().__init__()
        del device_ids, dim, set_dynamic_batching
        self.model = model

    def forward(self, *tensors: torch.Tensor) -> Any:
        """The model's answer; there is one core here."""
        return self.model(*tensors)

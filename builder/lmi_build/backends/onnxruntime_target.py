"""
Which execution provider of ONNX Runtime a recipe's target means, and what it lacks.

For `cuda` the builder writes a graph of float16 on any host; its products with packed
weights are `MatMulNBits`, and its attention is `GroupQueryAttention` with the cache in
place. Read, not run: no engine of it has been loaded on a GPU by us. The same graph
runs with ONNX Runtime's CPU kernels, and that is how the build tries it.

Sources: onnxruntime-genai 0.18.0, `models/builders/base.py` (providers and types);
ONNX Runtime 1.31 `docs/OperatorKernels.md` (`MatMulNBits`: float16, 4 and 8 bits;
`MatMulIntegerToFloat`: not for CUDA).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.problems import unsupported
from lmi_build.catalog.instances import instances

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.errors import Problem
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import Recipe

CPU, CUDA = "cpu", "cuda"
# Largest difference of a logit over the largest one that float16 adds; measured on
# small models: 2e-3.
HALF_ERROR = 0.03


def provider_of(target: str) -> str:
    """`cpu`, `cuda`, or nothing for a target that is neither."""
    if target in {CPU, CUDA}:
        return target
    found = instances().get(target)
    return CUDA if found is not None and found.accelerator == "gpu" else ""


def target_problems(
    recipe: Recipe, scheme: QuantScheme, *, lm_head_dtype: str
) -> Iterator[Problem]:
    """Yield why no engine is built for the target, by dotted recipe path."""
    target = recipe.compile.target
    provider = provider_of(target)
    if not provider:
        yield unsupported(
            f"`onnxruntime` builds for `cpu` and `cuda`, not for `{target}`",
            "compile.target",
            "set `target: cpu`, `target: cuda` or an instance with NVIDIA GPUs",
        )
    if provider != CUDA:
        return
    if scheme.weight_dtype == "float" and scheme.packing != "none":
        yield unsupported(
            "fp8 weights would be rounded to float16 for CUDA",
            "quantize.method",
            "use `gptq`, `awq`, `int8` or `none`, or set `target: cpu`",
        )
    elif scheme.activation_scheme != "none":
        yield unsupported(
            "ONNX Runtime has no product of 8-bit weights and 8-bit activations for"
            " CUDA",
            "quantize.method",
            "use `int8`, `gptq` or `awq`, or set `target: cpu`",
        )
    if lm_head_dtype != "float32":
        yield unsupported(
            f"`lm_head_dtype: {lm_head_dtype}` is for `cpu`; for CUDA the head is"
            " float16",
            "compile.options.lm_head_dtype",
            "remove the line",
        )

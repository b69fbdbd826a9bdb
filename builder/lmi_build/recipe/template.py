"""The recipe that `lmi-build init` writes: short, complete, and explained."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lmi_build.recipe.forms import source_kind
from lmi_build.recipe.methods import METHODS
from lmi_build.recipe.model import SCHEMA
from lmi_build.recipe.scalars import resolve
from lmi_build.recipe.words import show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.values.bounds import Bounds
    from lmi_build.values.recipe import CompileSpec, ModelSpec

_CALIBRATED = frozenset({"gptq", "awq", "smoothquant"})

_HEAD = """\
# A recipe of lmi-build. Check it with `lmi-build validate`, see what it would do
# with `lmi-build plan`, do it with `lmi-build build`.
schema: {schema}
name: {name}

model:
  # A hub repository (owner/name), a folder (./model), an s3:// prefix or a .gguf file.
  source: {source}
{revision}"""

_REVISION = """\
  # A branch, tag or commit; a full commit makes the build repeatable.
  revision: main
"""

_BITS = """\
  bits: 4
  # Input channels that share a scale; it must divide the width of every layer.
  group_size: {group_size}
"""

_CALIBRATION = """\
  calibration:
    # Or a .txt, .jsonl or .parquet file, hub:owner/name, or s3://bucket/file.jsonl.
    dataset: builtin:python-docs
    num_samples: 64
    max_seq_len: 512
    seed: 0
"""

_TAIL = """\

# What one request and one batch may ask for, in tokens and requests. The engine is
# compiled for these, and enforces them.
bounds:
  max_input_len: 512
  max_output_len: 128
  max_batch_size: 4

compile:
  backend: {backend}
  # cpu, or an instance type such as ml.g5.12xlarge.
  target: cpu

# Tried on the packed artifact; a gate that is missed fails the build.
verify:
  prompts: ["What is the capital of France?"]
  gates:
    min_top1_agreement: {agreement}

# publish:
#   to: s3://my-models/{name}
"""

_ADVISED = """\

# What one request and one batch may ask for, in tokens and requests.
bounds:
  max_input_len: {bounds.max_input_len}
  max_output_len: {bounds.max_output_len}
  max_batch_size: {bounds.max_batch_size}

compile:
  backend: {compile.backend}
  target: {compile.target}
"""


def advised(
    model: ModelSpec,
    *,
    name: str,
    method: str,
    bounds: Bounds,
    compile_for: CompileSpec,
    because: Sequence[str],
) -> str:
    """
    Write the recipe that an advice ends in.

    Args:
        model: Source and float type.
        name: Name of the artifact.
        method: As `quantize.method` takes it.
        bounds: What the engine shall hold.
        compile_for: Backend, target, release and ranks.
        because: Lines that say why, for comments.

    Returns:
        YAML; whether a backend takes it is for the backend to say.
    """
    more = _REVISION if source_kind(model.source) == "hub" else ""
    if model.dtype != "auto":
        more += f"  dtype: {model.dtype}\n"
    head = _HEAD.format(
        schema=SCHEMA, name=_text(name), source=_text(model.source), revision=more
    )
    text = "".join(f"# {line}\n" for line in because) + head + _quantize(method)
    text += _ADVISED.format(bounds=bounds, compile=compile_for)
    if compile_for.release is not None:
        text += f"  release: {compile_for.release}\n"
    if compile_for.tensor_parallel_size > 1:
        ranks = compile_for.tensor_parallel_size
        text += f"  tensor_parallel_size: {ranks}\n"
    return text


def starter(name: str, source: str, method: str, backend: str) -> str:
    """
    Write a first recipe.

    Args:
        name: Name of the artifact.
        source: As `model.source` takes it.
        method: `none`, `gptq`, `awq`, `smoothquant` or `int8`.
        backend: As `compile.backend` takes it.

    Returns:
        YAML that loads without a problem if the arguments are sound.
    """
    revision = _REVISION if source_kind(source) == "hub" else ""
    return (
        _HEAD.format(
            schema=SCHEMA, name=_text(name), source=_text(source), revision=revision
        )
        + _quantize(method)
        + _TAIL.format(
            name=show(name),
            backend=_text(backend),
            agreement="0.95" if method in {"none", "int8"} else "0.80",
        )
    )


def _quantize(method: str) -> str:
    methods = ", ".join(METHODS)
    text = f"\nquantize:\n  # One of {methods}.\n  method: {_text(method)}\n"
    if method in {"gptq", "awq"}:
        text += _BITS.format(group_size=64)
    if method in _CALIBRATED:
        text += _CALIBRATION
    return text


def _text(value: str) -> str:
    """A plain scalar where YAML reads it as this very text, else a quoted one."""
    safe = all(c.isalnum() or c in "._/-:~" for c in value) and value[-1:] != ":"
    starts = value[:1].isalnum() or value[:1] in {".", "/"}
    if safe and starts and resolve(value).value == value:
        return value
    return json.dumps(value)

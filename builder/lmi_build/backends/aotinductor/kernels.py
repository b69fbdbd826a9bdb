"""
Our kernels for processors, as operators that graphs call.

The compiler's own loops for products of one row with packed weights are slow and
take minutes to compile; `kernels.cpp` has them by hand. An exported graph names an
operator, and the compiled graph calls the function of the same name, which is linked
into it. Nothing runs them before: they have shapes alone.

Shape suffixes: R rows, I input channels, O outputs, G groups of I, x bytes of a group,
B slots, C places of a cache, N query heads, K key and value heads, H head width.
"""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.cpp")
_LIBRARY: Any = torch.library.Library("lmi_build", "DEF")  # type: ignore[no-untyped-call]
_SCHEMAS = (
    "grouped_product(Tensor x, Tensor code, Tensor scale, Tensor? zero) -> Tensor",
    "widened(Tensor code, Tensor scale, Tensor? zero, bool narrow) -> Tensor",
    "float_product(Tensor x, Tensor weight) -> Tensor",
    "whole_product(Tensor x, Tensor code) -> Tensor",
    (
        "attention(Tensor query, Tensor key, Tensor value, Tensor place,"
        " Tensor? bias, float cap, int window, int limit) -> Tensor"
    ),
)
# How the C interface passes what a schema says.
_C_TYPES = {
    "Tensor": "AtenTensorHandle",
    "Tensor?": "AtenTensorHandle*",
    "bool": "int32_t",
    "float": "double",
    "int": "int64_t",
}


def in_graph(x: Tensor) -> bool:
    """Whether a graph for a processor is being exported."""
    return torch.compiler.is_exporting() and x.device.type == "cpu"


def grouped_product(
    x_RI: Tensor, code_OGx: Tensor, scale_OG: Tensor, zero_OG: Tensor | None
) -> Tensor:
    """Float32 rows times codes with a scale for each group: float32 [R, O]."""
    return _call("grouped_product", x_RI.contiguous(), code_OGx, scale_OG, zero_OG)


def widened(
    code_OGx: Tensor, scale_OG: Tensor, zero_OG: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The weights [O, I] that codes mean, float32 or bfloat16."""
    narrow = dtype == torch.bfloat16
    return _call("widened", code_OGx, scale_OG, zero_OG, narrow).to(dtype)


def float_product(x_RI: Tensor, weight_OI: Tensor) -> Tensor:
    """Float32 rows times weights of any float type: float32 [R, O]."""
    return _call("float_product", x_RI.contiguous(), weight_OI)


def whole_product(x_RI: Tensor, code_OI: Tensor) -> Tensor:
    """Rows of int16 times codes of int8: int32 [R, O]."""
    return _call("whole_product", x_RI.contiguous(), code_OI)


def attention(
    query_RNH: Tensor,
    key_BKCH: Tensor,
    value_BKCH: Tensor,
    place_R: Tensor,
    *,
    bias_NC: Tensor | None,
    cap: float | None,
    window: int | None,
    limit: int,
) -> Tensor:
    """
    Attention of each row to the places up to its own.

    Args:
        query_RNH: Scaled queries, float32.
        key_BKCH: Keys, float32 or bfloat16.
        value_BKCH: Values, of the same type.
        place_R: The rows' places, int64; R / B rows of each slot in turn.
        bias_NC: Added to the scores, or None.
        cap: Bound that a tanh brings scores into, or None.
        window: Places that a row sees, its own included; None for all.
        limit: Rows at this place or after it get zeros.

    Returns:
        Mixed values, float32 [R, N * H].
    """
    query_RNH = query_RNH.contiguous()
    caches = (key_BKCH, value_BKCH, place_R)
    numbers = (cap or 0.0, window or 0, limit)
    return _call("attention", query_RNH, *caches, bias_NC, *numbers)


def c_interface() -> Mapping[Any, list[str]]:
    """For Inductor: each operator's C declaration."""
    found = {}
    for schema in _SCHEMAS:
        name, _, rest = schema.partition("(")
        words = rest.partition(")")[0].split(", ")
        types = [_C_TYPES[word.split()[0]] for word in words]
        wanted = ", ".join([*types, "AtenTensorHandle*"])
        declared = f"AOTITorchError aoti_torch_cpu_lmi_{name}({wanted})"
        found[_operator(name)] = [declared]
    return found


def compile_kernels(compiler: str, march: str, target: Path) -> None:
    """
    Compile the kernels for one instruction set.

    Args:
        compiler: The C++ compiler.
        march: Its name for the instruction set.
        target: An object file, or a library (`.so`).

    Raises:
        subprocess.CalledProcessError: The compiler failed; it says why in `stderr`.
    """
    include = Path(torch.__file__).parent / "include"
    shared = ("-shared",) if target.suffix == ".so" else ("-c",)
    subprocess.run(
        [
            compiler,
            *("-std=c++20", "-O3", "-w", "-fPIC", "-fopenmp", "-ffp-contract=fast"),
            *(f"-march={march}", "-mprefer-vector-width=512", f"-I{include}"),
            *(*shared, str(SOURCE), "-o", str(target)),
        ],
        check=True,
        capture_output=True,
    )


@cache
def _operator(name: str) -> Any:
    return getattr(torch.ops.lmi_build, f"lmi_{name}").default


def _call(name: str, *arguments: Any) -> Tensor:
    found: Tensor = _operator(name)(*arguments)
    return found


def _grouped_product(x: Tensor, code: Tensor, *_: Any) -> Tensor:
    return x.new_empty((x.shape[0], code.shape[0]))


def _widened(code: Tensor, scale: Tensor, zero: Tensor | None, narrow: bool) -> Tensor:  # noqa: FBT001
    del scale, zero
    outputs, groups, size = code.shape
    inputs = groups * size * (2 if code.dtype == torch.uint8 else 1)
    dtype = torch.bfloat16 if narrow else torch.float32
    return code.new_empty((outputs, inputs), dtype=dtype)


def _float_product(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


def _whole_product(x: Tensor, code: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], code.shape[0]), dtype=torch.int32)


def _attention(query: Tensor, *_: Any) -> Tensor:
    return query.new_empty((query.shape[0], query.shape[1] * query.shape[2]))


def _register() -> None:
    shapes = (_grouped_product, _widened, _float_product, _whole_product, _attention)
    for schema, shape in zip(_SCHEMAS, shapes, strict=True):
        name = _LIBRARY.define(f"lmi_{schema}")
        _LIBRARY.impl(name, shape, "Meta")


_register()

"""The engine's own kernels, compiled alone and called as graphs call them."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_double, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Kernels:
    """
    Kernels for one instruction set.

    Args:
        library: What `worker.compile_kernels` wrote, linked.
    """

    def __init__(self, library: Path) -> None:
        torch_library = Path(torch.__file__).parent / "lib/libtorch_cpu.so"
        self._torch = ctypes.CDLL(str(torch_library), ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(library))

    def __call__(self, name: str, *arguments: Any) -> Tensor:
        """What one kernel gives; a list of one tensor, or None, is an optional one."""
        call = getattr(self._library, f"aoti_torch_cpu_lmi_{name}")
        out = c_void_p()
        status = call(*(self._argument(value) for value in arguments), byref(out))
        assert status == 0
        return self._tensor(out)

    def _argument(self, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, list):
            return byref(self._handle(value[0]))
        if isinstance(value, float):
            return c_double(value)
        if isinstance(value, bool):
            return c_int32(value)
        return c_int64(value) if isinstance(value, int) else self._handle(value)

    def _handle(self, tensor: Tensor) -> c_void_p:
        handle, numbers = c_void_p(), c_int64 * tensor.ndim
        status = self._torch.aoti_torch_create_tensor_from_blob(
            c_void_p(tensor.data_ptr()),
            c_int64(tensor.ndim),
            numbers(*tensor.shape),
            numbers(*tensor.stride()),
            c_int64(0),
            c_int32(getattr(self._torch, f"aoti_torch_dtype_{name_of(tensor)}")()),
            c_int32(0),
            c_int32(0),
            byref(handle),
        )
        assert status == 0
        return handle

    def _tensor(self, handle: c_void_p) -> Tensor:
        dtype, sizes, data = c_int32(), ctypes.POINTER(c_int64)(), c_void_p()
        self._torch.aoti_torch_get_dtype(handle, byref(dtype))
        self._torch.aoti_torch_get_sizes(handle, byref(sizes))
        self._torch.aoti_torch_get_data_ptr(handle, byref(data))
        kinds = {
            getattr(self._torch, f"aoti_torch_dtype_{str(kind).partition('.')[2]}")(): (
                kind
            )
            for kind in (torch.float32, torch.bfloat16, torch.int32)
        }
        kind, shape = kinds[dtype.value], (sizes[0], sizes[1])
        count = shape[0] * shape[1] * kind.itemsize
        raw = bytearray(ctypes.string_at(data, count))
        self._torch.aoti_torch_delete_tensor_object(handle)
        return torch.frombuffer(raw, dtype=kind).view(shape)


def name_of(tensor: Tensor) -> str:
    """Its type as the C interface calls it."""
    return str(tensor.dtype).partition(".")[2]

"""Peak rates of accelerators, read from data."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - read_row reads annotations
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from lmi_build.catalog.tables import read_row, read_tables

FILE = "devices.toml"
# Types of products that a device has a rate for; `fp16` also stands for bfloat16.
PRODUCTS = ("fp16", "fp8", "int8")
GIGA = 1e9
TERA = 1e12


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """
    What one device can do at best.

    Args:
        memory_gbps: Bandwidth of its memory in 10^9 bytes a second.
        dense_tflops: Operations in 10^12 a second, without sparsity, by `PRODUCTS`.
        source: Where the numbers were read.
        checked: When, as `YYYY-MM-DD`.
        link: What joins two devices of an instance.
        link_gbps: Its bandwidth, both directions together, in 10^9 bytes a second;
            None where no source was found.
        bf16: Whether products of bfloat16 run at the rate of `fp16`.
    """

    memory_gbps: int | float
    dense_tflops: Mapping[str, int | float]
    source: str
    checked: str
    link: str = ""
    link_gbps: int | float | None = None
    bf16: bool = True

    @property
    def memory_bytes_per_second(self) -> float:
        """Bandwidth of the memory in bytes a second."""
        return self.memory_gbps * GIGA

    @property
    def link_bytes_per_second(self) -> float | None:
        """Bandwidth of the link in one direction, in bytes a second."""
        return None if self.link_gbps is None else self.link_gbps * GIGA / 2

    def flops_per_second(self, product: str) -> float:
        """
        Rate of a type of product; of `fp16` where the device has no faster one.

        Raises:
            ValueError: There is no such type.
        """
        if product not in PRODUCTS:
            raise ValueError(f"`{product}` is none of {PRODUCTS}")
        return self.dense_tflops.get(product, self.dense_tflops["fp16"]) * TERA


@cache
def devices() -> Mapping[str, Device]:
    """
    Every known device by name, in the file's order.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    return MappingProxyType(
        {
            name: device_row(table, where=f"{FILE}: [{name}]")
            for name, table in read_tables(FILE).items()
        }
    )


def device_row(table: Mapping[str, Any], *, where: str) -> Device:
    """
    One device.

    Args:
        table: As in `devices.toml`.
        where: File and table, for messages.

    Raises:
        ValueError: The table is wrong, with the place.
    """
    device = read_row(Device, table, where=where)
    if unknown := sorted(set(device.dense_tflops) - set(PRODUCTS)):
        raise ValueError(
            f"{where}, `dense_tflops` has {unknown}; known: {list(PRODUCTS)}"
        )
    if "fp16" not in device.dense_tflops:
        raise ValueError(f"{where}, `dense_tflops` lacks `fp16`")
    numbers = {
        "memory_gbps": device.memory_gbps,
        **{f"dense_tflops.{k}": v for k, v in device.dense_tflops.items()},
    }
    if device.link_gbps is not None:
        numbers["link_gbps"] = device.link_gbps
    for key, number in numbers.items():
        if not 0 < number < float("inf"):
            raise ValueError(f"{where}, `{key}` is {number}, not a positive number")
    return device

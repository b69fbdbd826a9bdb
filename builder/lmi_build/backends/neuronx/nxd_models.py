"""How optimum-neuron and NxD Inference set up a model type, read from data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from lmi_build.backends.neuronx import PACKAGE
from lmi_build.catalog.tables import read_row, read_tables

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "nxd_models.toml"
CONTEXT_GRAPHS = ("whole", "layers", "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class TnxSetup:
    """
    A model type in optimum-neuron over transformers-neuronx.

    Args:
        model_class: Dotted path of the class that it calls.
        continuous: Batches of more than one are continuous.
        attention_layout: Layout of attention that it passes on.
        context_graphs: `whole` (all layers of a prompt are one graph), `layers` (one
            graph per layer, with the head apart) or `none` (a prompt is computed token
            by token).
    """

    model_class: str
    continuous: bool = False
    attention_layout: str = "HSB"
    context_graphs: str = "whole"


@dataclass(frozen=True, kw_only=True, slots=True)
class NxdSetup:
    """
    A model type in optimum-neuron over NeuronX Distributed.

    Args:
        fused_qkv: Queries, keys and values are one matrix.
        on_device_sampling: Tokens are drawn on the cores.
        host_sampling_size: Number of cores at which continuous batches draw their
            tokens on the host all the same, as a fault of the runtime asks; 0 for none.
        continuous: Batches of more than one are continuous.
        moe: It has experts.
        flags: The compiler's flags where its class has its own; empty for the usual.
    """

    fused_qkv: bool = False
    on_device_sampling: bool = False
    host_sampling_size: int = 0
    continuous: bool = False
    moe: bool = False
    flags: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class NxdiSetup:
    """
    A model type in NxD Inference.

    Args:
        moe: It has experts, and a configuration with arguments for them.
        flags: The compiler's flags where its class has its own; empty for the usual.
    """

    moe: bool = False
    flags: str = ""


Setup = TypeVar("Setup", TnxSetup, NxdSetup, NxdiSetup)


def tnx_setup(model_type: str) -> TnxSetup | None:
    """
    How optimum-neuron 0.0.20 to 0.0.27 has a model type, or None.

    Args:
        model_type: As `config.json` has it.
    """
    return _tables(TnxSetup, "tnx").get(model_type)


def nxd_setup(model_type: str) -> NxdSetup | None:
    """
    How optimum-neuron has a model type from 0.4 on, or None.

    Args:
        model_type: As `config.json` has it.
    """
    return _tables(NxdSetup, "nxd").get(model_type)


def nxdi_setup(model_type: str) -> NxdiSetup | None:
    """
    How NxD Inference has a model type, or None.

    Args:
        model_type: As `config.json` has it.
    """
    return _tables(NxdiSetup, "nxdi").get(model_type)


@cache
def _tables(cls: type[Setup], part: str) -> Mapping[str, Setup]:
    found = {}
    for name, table in read_tables(FILE, package=PACKAGE).items():
        where = f"{FILE}: [{name}]"
        if unknown := sorted(set(table) - {"tnx", "nxd", "nxdi"}):
            raise ValueError(f"{where} has unknown tables {unknown}")
        if part in table:
            found[name] = read_row(cls, table[part], where=f"{where}.{part}")
    for name, row in found.items():
        graphs = getattr(row, "context_graphs", CONTEXT_GRAPHS[0])
        if graphs not in CONTEXT_GRAPHS:
            raise ValueError(f"{FILE}: [{name}] has context graphs {graphs!r}")
    return MappingProxyType(found)

"""How each LMI release comes from a folder to a call of its library, read from data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx import PACKAGE
from lmi_build.catalog.tables import read_row, read_tables, refuse_unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "front_ends.toml"
ENTRY_POINT = "djl_python.transformers_neuronx"
ROOT_WEIGHTS = ("unread", "beside graphs", "instead of graphs")
CONTEXT_RULES = ("whole", "whole with BSH", "first whole with BSH")
CONTEXT_DEFAULTS = ("whole", "doubling")
CLASSES = ("own", "auto")


@dataclass(frozen=True, kw_only=True, slots=True)
class NeuronFrontEnd:
    """
    One release's server and its handler of Transformers NeuronX.

    Args:
        lmi: Version of LMI.
        layout: Where it looks for weights: `split` (`checkpoint/`) or `presharded`
            (`compiled/`).
        model_class: Whether it calls a model's `own` class or the library's `auto` one.
        model_types: Those its table of classes has.
        model_loaders: What `option.model_loader` may say; empty where it is not read.
        optimum_models: Model types that optimum-neuron loads when no loader is named.
        rolling_batch: What `option.rolling_batch` says for the handler's own scheduler.
        rolling_batch_unset: What it stands for when it is not set.
        recommends: The server fills in what the file leaves open.
        vllm_from: Batch size from which the server makes `vllm` of `auto`; 0 for never.
        lmi_dist: What the server makes of `lmi-dist`, a scheduler for GPUs.
        strategies: `option.rolling_batch_strategy` is read; every rolling batch is
            continuous where it is not.
        continuous_models: Model types whose batches are continuous when no strategy is
            named; empty for all.
        continuous_from: Batch size from which a strategy named `continuous_batching`
            is followed.
        continuous_unset_from: The same where no strategy is named.
        context_rule: One of `CONTEXT_RULES`: which context lengths continuous batching
            takes: `n_positions` alone always, or with that layout of the cache, or only
            as the first one of several.
        context_default: One of `CONTEXT_DEFAULTS`, for continuous batching.
        n_positions: What it is when it is not set; 0 where the machine decides.
        smart_defaults: A folder with a `neuron` block embeds on the device.
        environment: Variables are defaults of some properties.
        root_weights: One of `ROOT_WEIGHTS`: what it makes of safetensors at the root.
        compiles_without_graphs: It compiles when `compiled/` is not there.
        moves_cache: It copies a compile cache that it cannot write to.
        one_weights_file: It reads one `model.safetensors`, no index.
        neuron_config: Options of `NeuronConfig` that it passes on, by the name of the
            property, which is theirs as well.
        reads: Further properties of the handler, without `option.`.
    """

    lmi: str
    layout: str
    model_class: str
    model_types: tuple[str, ...]
    rolling_batch: str
    rolling_batch_unset: str
    context_rule: str
    context_default: str
    root_weights: str
    neuron_config: tuple[str, ...]
    reads: tuple[str, ...]
    model_loaders: tuple[str, ...] = ()
    optimum_models: tuple[str, ...] = ()
    recommends: bool = False
    vllm_from: int = 0
    lmi_dist: str = "lmi-dist"
    strategies: bool = True
    continuous_models: tuple[str, ...] = ()
    continuous_from: int = 1
    continuous_unset_from: int = 1
    n_positions: int = 0
    smart_defaults: bool = False
    environment: bool = False
    compiles_without_graphs: bool = False
    moves_cache: bool = False
    one_weights_file: bool = False

    @property
    def weights_dir(self) -> str:
        """Folder of the weights below the artifact's root."""
        return GRAPHS_DIR if self.layout == "presharded" else "checkpoint"


# Folder of the graphs, on every release.
GRAPHS_DIR = "compiled"


@cache
def neuron_front_ends() -> Mapping[str, NeuronFrontEnd]:
    """
    Every known front end by version of LMI, newest first.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    found = {}
    for lmi, table in read_tables(FILE, package=PACKAGE).items():
        where = f"{FILE}: [{lmi}]"
        row = read_row(NeuronFrontEnd, {"lmi": lmi, **table}, where=where)
        refuse_unknown(
            where,
            ("layout", (row.layout,), ("split", "presharded")),
            ("model_class", (row.model_class,), CLASSES),
            ("context_rule", (row.context_rule,), CONTEXT_RULES),
            ("context_default", (row.context_default,), CONTEXT_DEFAULTS),
            ("root_weights", (row.root_weights,), ROOT_WEIGHTS),
        )
        found[lmi] = row
    return MappingProxyType(found)

"""Where two calls of Transformers NeuronX would build other graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.calls import plain
from lmi_build.backends.neuronx.loader_call import AUTO_CLASS
from lmi_build.backends.neuronx.models import neuron_models
from lmi_build.backends.neuronx.signatures import signatures

if TYPE_CHECKING:
    from collections.abc import Mapping

_FACTORY, _ARGUMENTS = "factory", "arguments"
# Options that say how it is compiled; no graph has them.
_COMPILE_ONLY = frozenset({"neuron_config.compilation_worker_count"})
# Two names of one number.
_SAME = {"max_num_seqs": "batch_size_for_shared_caches"}
_CONTEXT = "context_length_estimate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """
    One argument that is not the same.

    Args:
        name: Its name; options of `NeuronConfig` after a dot.
        compiled: What was compiled; None for not set.
        loaded: What the loader passes; None for not set.
    """

    name: str
    compiled: Any
    loaded: Any

    @property
    def option(self) -> str:
        """Its name without that of `NeuronConfig`."""
        return self.name.removeprefix("neuron_config.")


def call_differences(
    compiled: Mapping[str, Any], loaded: Mapping[str, Any], *, tnx_row: str
) -> tuple[Difference, ...]:
    """
    Every argument of two calls that gives other graphs, sorted by name.

    What is not set and what is set to the library's default are the same, as are
    `max_num_seqs` and its older name, and one context length with or without a list.

    Args:
        compiled: Keyword arguments of the call that compiled; `Made` or JSON.
        loaded: Those of the call that the loader makes.
        tnx_row: Version of Transformers NeuronX, as `NeuronRelease.tnx_row` names it.
    """
    ours, theirs = canonical(compiled, tnx_row), canonical(loaded, tnx_row)
    return tuple(
        Difference(name=name, compiled=ours.get(name), loaded=theirs.get(name))
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    )


def canonical(arguments: Mapping[str, Any], tnx_row: str) -> dict[str, Any]:
    """
    Arguments by name without what every version of a call may leave out.

    Args:
        arguments: Keyword arguments; values may be `Made` or its JSON.
        tnx_row: As of `call_differences`.
    """
    found = _flat(plain(arguments), "", tnx_row)
    lengths = found.get(_CONTEXT)
    if lengths is not None and not isinstance(lengths, list):
        found[_CONTEXT] = [lengths]
    return {name: value for name, value in found.items() if name not in _COMPILE_ONLY}


def effective_class(path: str, model_type: str) -> str:
    """
    The class that a call comes to: what the automatic one takes for a model type.

    Args:
        path: Dotted path that the call names.
        model_type: As `config.json` says.
    """
    if path != AUTO_CLASS or model_type not in neuron_models():
        return path
    row = neuron_models()[model_type].loaders["tnx"]
    return row.auto_class or row.model_class


def _flat(arguments: Mapping[str, Any], at: str, tnx_row: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, dict) and set(value) == {_FACTORY, _ARGUMENTS}:
            inner = _without_defaults(value, tnx_row)
            path = f"{at}{name}."
            found |= _flat(inner, path, tnx_row) or _named(path, name)
        elif value is not None:
            found[at + _SAME.get(name, name)] = value
    return found


def _named(path: str, name: str) -> dict[str, Any]:
    """What is made without arguments is still made, except for `NeuronConfig`."""
    return {} if name == "neuron_config" else {path.rstrip("."): True}


def _without_defaults(made: Mapping[str, Any], tnx_row: str) -> dict[str, Any]:
    factory = str(made[_FACTORY]).rpartition(".")[2]
    row = signatures().get(tnx_row)
    known = row.configs.get(factory, {}) if row is not None else {}
    return {
        name: value
        for name, value in made[_ARGUMENTS].items()
        if name not in known or value != known[name].default
    }

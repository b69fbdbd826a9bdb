"""
What a Neuron toolchain is asked to do, as plain values.

A call is lowered where the recipe is read, becomes the parameters of the compile stage,
and is carried out by a driver that runs in the toolchain's own Python. A rehearsal
shows the same call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmi_build.digest import JSONValue

LOADERS = ("tnx", "optimum", "nxdi", "trace")
SCHEMA = "lmi-build/neuron-call/v1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """
    An object that the driver makes and passes on, such as a `QuantizationConfig`.

    Args:
        factory: Dotted path of its class in the toolchain.
        arguments: Its keyword arguments; values may be `Made` again.
    """

    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSONValue]:
        """`{"factory": ..., "arguments": {...}}`."""
        return {"factory": self.factory, "arguments": plain(self.arguments)}


@dataclass(frozen=True, kw_only=True, slots=True)
class NeuronCall:
    """
    One model's compilation.

    Args:
        loader: One of `LOADERS`.
        model_class: Dotted path of the class that loads the model, such as
            `transformers_neuronx.NeuronAutoModelForCausalLM`.
        arguments: Its keyword arguments beside the model's folder; values may be
            `Made`.
        steps: Methods that follow, in order, with their keyword arguments: such as
            `("to_neuron", {})`. A path among them is written as `{"path": NAME}`,
            relative to the folder that becomes the result.
        environment: Variables that must be set before anything is imported.
        flags: Words of `NEURON_CC_FLAGS`, those of the recipe and those that the
            loader adds of itself.
        num_graphs: Graphs that will be compiled, each into one NEFF.
        num_neffs: NEFF files that must lie in the result; 0 where they are inside
            another file.
        files: What the result must hold at least, by path.
        target: Platform target of the compiler: `inf2`, `trn1` or `trn2`.
    """

    loader: str
    model_class: str
    arguments: Mapping[str, Any]
    steps: tuple[tuple[str, Mapping[str, Any]], ...]
    environment: Mapping[str, str]
    flags: tuple[str, ...]
    num_graphs: int
    num_neffs: int
    files: tuple[str, ...]
    target: str

    def to_json(self) -> dict[str, JSONValue]:
        """The call as parameters of a stage, and as the driver reads it."""
        found: dict[str, JSONValue] = {"schema": SCHEMA}
        for item in fields(self):
            found[item.name] = plain(getattr(self, item.name))
        return found


def plain(value: Any) -> Any:
    """
    A value with every `Made` and tuple in it as JSON has them.

    Args:
        value: Anything that a call may hold.
    """
    if isinstance(value, Made):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value

"""What the backend asks of each library that compiles and loads Neuron graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.backends.neuronx.compile_plan import CompilePlan
    from lmi_build.backends.neuronx.target import Target
    from lmi_build.errors import Problem
    from lmi_build.spi import Proof, Serving
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.stage import Estimate, Note


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """
    One artifact that is asked for.

    Args:
        recipe: Its quantization is settled.
        model: The model, pinned down.
        target: Release, machine and library.
        rehearse: The call is only written down.
    """

    recipe: Recipe
    model: ModelFacts
    target: Target
    rehearse: bool = False


class Loader(Protocol):
    """One library, as pure functions of what is asked for."""

    def problems(self, request: Request) -> Iterator[Problem]:
        """Yield every reason why it cannot be built, by dotted recipe path."""

    def plan(self, request: Request) -> CompilePlan:
        """What its toolchain is told; `problems` found nothing."""

    def estimate(self, request: Request) -> Estimate:
        """Bytes on disk and in memory of compiling it."""

    def notes(self, request: Request) -> tuple[Note, ...]:
        """What `plan` says about it."""

    def serving(self, request: Request) -> Serving:
        """What the package needs."""

    def proof(self, request: Request) -> Proof:
        """How the packed artifact is tried."""

"""
Stages, their keys, and the plan that joins them.

A key is the SHA-256 of the canonical JSON of everything that can change a byte of
the stage's output: plan schema, kind, lowered parameters, the *keys* of its inputs,
tool versions, platform and the provider's salt. Names, paths, estimates and
credentials stay out. Because inputs enter by key, every name is known before any
work starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmi_build.digest import Digest, JSONValue, digest_json

if TYPE_CHECKING:
    from collections.abc import Mapping

# Bumped when the meaning of a key document changes; every key changes with it.
PLAN_SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """
    What a stage will cost, as far as it is known before; never in a key.

    Args:
        download_bytes: Bytes that come over a network.
        disk_bytes: Bytes that stay in the store.
        scratch_bytes: Further bytes needed while it runs.
        ram_bytes: Peak resident memory.
    """

    download_bytes: int = 0
    disk_bytes: int = 0
    scratch_bytes: int = 0
    ram_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocker:
    """
    Why a stage cannot run on this machine; the plan is still whole.

    Args:
        code: Stable slug.
        message: What is missing.
        hint: How to get it.
        exit_code: 3 for a missing tool, 4 for a machine too small.
    """

    code: str
    message: str
    hint: str
    exit_code: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """
    What a user should know before a stage runs; never in a key.

    Args:
        level: `info` or `warning`.
        code: Stable slug.
        message: What, with numbers, and what to do about it.
    """

    level: str
    code: str
    message: str


class _Named:
    """Room for a key that was computed once; no field, and no part of the value."""

    __slots__ = ("_key",)
    _key: Digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage(_Named):
    """
    One step of a build.

    Args:
        name: Unique in the plan, such as `smollm2-gptq/quantize`.
        kind: `fetch`, `calibration`, `quantize`, `checkpoint`, `compile`, `package` or
            `verify`.
        params: Lowered parameters: native names, no defaults left open.
        inputs: Role to the key of the stage that makes it.
        tools: Distribution to version, of all that can change a byte.
        platform: What the output is for; `any` when it does not matter.
        salt: The provider's, bumped when its code changes meaning.
        entry: `module:attribute` of the callable that runs in the worker.
        job: Parameters that do not change a byte: locations, thread counts.
        secrets: Names of settings the worker may see; values never stand here.
        estimate: Its cost.
        blocker: Why it cannot run here, or None.
        notes: Said by `plan`, and by `build` when the stage starts.
        toolchain: Name of the private environment it runs in; empty for this one.
            Its pins stand in `tools`.
    """

    name: str
    kind: str
    params: Mapping[str, JSONValue]
    inputs: Mapping[str, Digest]
    tools: Mapping[str, str]
    platform: str
    salt: int
    entry: str
    job: Mapping[str, JSONValue] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    estimate: Estimate = field(default_factory=Estimate)
    blocker: Blocker | None = None
    notes: tuple[Note, ...] = ()
    toolchain: str = ""

    def key_document(self) -> dict[str, JSONValue]:
        """Everything that makes the key, by name."""
        return {
            "schema": PLAN_SCHEMA,
            "kind": self.kind,
            "params": self.params,
            "inputs": dict(self.inputs),
            "tools": dict(self.tools),
            "platform": self.platform,
            "salt": self.salt,
        }

    @property
    def key(self) -> Digest:
        """The name of this work."""
        try:
            return self._key
        except AttributeError:
            key = digest_json(self.key_document())
            object.__setattr__(self, "_key", key)
            return key


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedArtifact:
    """
    One artifact of a plan: its stages by kind.

    Args:
        name: The recipe's or variant's name.
        stages: Kind to key.
    """

    name: str
    stages: Mapping[str, Digest]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """
    Stages in an order that respects their inputs, each once.

    Args:
        recipe: Name of the recipe.
        stages: Topological order.
        artifacts: What comes out, in the recipe's order.
    """

    recipe: str
    stages: tuple[Stage, ...]
    artifacts: tuple[PlannedArtifact, ...]

    def stage(self, key: str) -> Stage:
        """
        The stage of a key.

        Raises:
            KeyError: The plan has no such stage.
        """
        for stage in self.stages:
            if stage.key == key:
                return stage
        raise KeyError(key)

"""
The interfaces that quantizers, backends and publishers implement.

A provider is a light object: importing its module must not import its toolchain.
`check`, `lower` and `estimate` are pure and run in the planner's process; `quantize`
and `compile` are heavy and run in a worker process of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from lmi_build.digest import JSONValue

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.errors import Problem
    from lmi_build.events import Emit
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import QuantSpec, Recipe
    from lmi_build.values.stage import Blocker, Estimate, Note

Params: TypeAlias = Mapping[str, JSONValue]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProviderInfo:
    """
    What a provider is and needs.

    Args:
        name: As the recipe names it.
        summary: One sentence for `doctor` and the support matrix.
        distributions: Python packages that must be installed to run it, by their
            index names; their versions go into the key.
        salt: Bumped when the provider's code changes meaning.
        entry: `module:attribute` of the worker's callable.
        methods: Quantization methods offered; empty for a backend.
        targets: Devices it builds for; empty for a quantizer.
        packings: Checkpoint packings a backend consumes.
        quantized_head: Whether a backend reads a head of codes (`quantize.lm_head`).
        modules: Importable names that prove the distributions work (`doctor`).
        toolchain: Name of the private environment it runs in; empty where it runs
            beside lmi-build. `distributions` are then that toolchain's to bring.
        further_entries: Entries of a backend's other stages and of its proof.
        threaded_methods: Methods whose sums are taken in an order that hangs on the
            number of threads, so that the number enters the key.
        varying: Patterns of the artifact's files, as `fnmatch` reads them, whose bytes
            may differ between two builds of one key; every other file is the same.
    """

    name: str
    summary: str
    distributions: tuple[str, ...]
    salt: int
    entry: str
    methods: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    packings: tuple[str, ...] = ()
    quantized_head: bool = False
    modules: tuple[str, ...] = ()
    toolchain: str = ""
    further_entries: tuple[str, ...] = ()
    threaded_methods: tuple[str, ...] = ()
    varying: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """
    One stage's work, as the worker sees it: paths and plain values only.

    Args:
        stage: The stage's name, for events.
        params: Lowered parameters; everything that may change a byte.
        inputs: Role to a read-only folder.
        out: Empty folder that becomes the result.
        state: Folder that survives a killed attempt of the same key; what is in it
            may be half written and must be checked before it is used.
        settings: What may not change a byte: locations, threads, endpoints.
    """

    stage: str
    params: Params
    inputs: Mapping[str, Path]
    out: Path
    state: Path
    settings: Params = field(default_factory=dict)


class Runnable(Protocol):
    """What a stage's `entry` names: runs the job or raises `LmiBuildError`."""

    def __call__(self, job: Job, emit: Emit) -> None:
        """Fill `job.out`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """
    What a backend needs in a package to be served by DJL Serving.

    Args:
        handler: Name of a file in `package/handlers/`, shipped as `model.py`; empty
            where a handler of the container answers.
        requirements: Pinned packages of the serving container.
        properties: `serving.properties` entries of this backend. With a handler of
            ours the layout adds those that name it.
        engine_dir: Folder inside the package that holds the engine; `.` is its root.
        settings: What the handler reads from `lmi_build.json` beside it: bounds,
            end-of-sequence ids and the backend's own values.
        tokenizer_dir: Folder inside the package for the tokenizer's files.
        tokenizer_class: Whether the tokenizer's file must name a class that
            transformers 4 has: `needed` where nothing else beside it names one,
            `known` where the model's `config.json` does, empty where the handler reads
            `tokenizer.json` itself.
        model_files: Further files of the model that lie beside its tokenizer, by
            name; those the model does not have are left out.
        files: Small texts written into the package, by path.
        environment: Variables that its container needs.
        compatibility: What the engine is bound to beside processor and device, for
            the manifest. A package of `requirements` that stands here as well, with
            its version, binds: the engine is refused where another is installed.
        bounds: What the engine was lowered to, over what the recipe says: numbers
            that the recipe left to the backend.
        rehearsal: The engine was only rehearsed: `publish` refuses the artifact.
    """

    handler: str
    requirements: tuple[str, ...]
    properties: Mapping[str, str]
    engine_dir: str
    settings: Params
    tokenizer_dir: str = "."
    tokenizer_class: str = ""
    model_files: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    compatibility: Params = field(default_factory=dict)
    bounds: Params = field(default_factory=dict)
    rehearsal: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendStage:
    """
    One step of a backend, between the checkpoint and the package.

    Args:
        kind: `checkpoint` (weights as the compiler wants them) or `compile`.
        entry: `module:attribute` of the worker's callable.
        salt: Bumped when its code changes meaning.
        params: Lowered parameters; everything that may change a byte.
        inputs: Role to the kind of stage that makes it: `fetch`, `weights` (what
            `quantize` or else `fetch` left) or an earlier kind of this backend.
        distributions: Python packages whose installed versions enter the key.
        tools: Versions that a release pins, whatever is installed here.
        estimate: Bytes on disk and in memory.
        settings: What may not change a byte.
        blocker: Why it cannot run on this machine, or None.
        notes: Said by `plan`.
        platform: What its bytes are for; empty for this machine and the recipe's
            target, `any` where they are the same everywhere.
    """

    kind: str
    entry: str
    salt: int
    params: Params
    inputs: Mapping[str, str]
    estimate: Estimate
    distributions: tuple[str, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    settings: Params = field(default_factory=dict)
    blocker: Blocker | None = None
    notes: tuple[Note, ...] = ()
    platform: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """
    How an artifact of a backend is tried.

    Args:
        distributions: Python packages that it needs beside those of every proof.
        entry: `module:attribute` of the worker's callable; empty where the engine is
            loaded here, asked, and compared with the float model.
        params: What it is told, beside the recipe's own `verify` section.
        estimate: Bytes in memory; None takes that of loading the engine here.
        weights: It also reads the checkpoint that the backend was given.
        relative_error: Where the engine is loaded here, how far its logits may be from
            those of the checkpoint in float32: largest difference over largest logit.
            It is what the engine's own number types add, and in no key.
    """

    distributions: tuple[str, ...]
    entry: str = ""
    params: Params = field(default_factory=dict)
    estimate: Estimate | None = None
    weights: bool = False
    relative_error: float = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """
    What a small program did.

    Args:
        status: Its exit status; 127 when it could not be started.
        output: Standard output and error together.
    """

    status: int
    output: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """
    What a backend may know of the machine that plans.

    Args:
        architecture: Its processor, `x86_64` or `aarch64`.
        runner: Where stages run that need another machine's toolchain: `local` or
            `container`.
        versions: Versions of installed distributions; None for what is absent.
        ask: Runs a small program such as `nvidia-smi` to its end.
        rehearse: Stages that need another machine are rehearsed instead of built.
        places: What this machine calls things that no key knows: `cache` (the store),
            `image` (of a container), `trtllm-examples`; absent where nobody said.
    """

    architecture: str
    runner: str
    versions: Callable[[Iterable[str]], Mapping[str, str | None]]
    ask: Callable[[Sequence[str]], Answer]
    rehearse: bool = False
    places: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """
    One thing that a machine has, or lacks, for `doctor`.

    Args:
        name: What was looked at.
        works: Whether it can be used.
        evidence: What was seen.
        fix: What to do when it does not work.
    """

    name: str
    works: bool
    evidence: str
    fix: str = ""


@runtime_checkable
class Quantizer(Protocol):
    """Turns a float checkpoint into a smaller one."""

    info: ProviderInfo

    def check(self, recipe: Recipe, model: ModelFacts) -> Iterator[Problem]:
        """Yield every reason why this cannot be done, by dotted recipe path."""

    def scheme(self, spec: QuantSpec, model: ModelFacts) -> QuantScheme:
        """What the result will be."""

    def lower(self, spec: QuantSpec, model: ModelFacts) -> Params:
        """The worker's parameters: complete, without defaults."""

    def job_settings(self, spec: QuantSpec) -> Params:
        """What the worker needs and no byte depends on: where a file lies."""

    def estimate(self, spec: QuantSpec, model: ModelFacts) -> Estimate:
        """Bytes on disk and in memory."""


@runtime_checkable
class Backend(Protocol):
    """Turns a checkpoint into an engine for one target."""

    info: ProviderInfo

    def quantization(self, recipe: Recipe, model: ModelFacts) -> QuantSpec:
        """
        The recipe's quantization, with what it leaves open chosen for this backend.

        A format whose scales the engine would round again is not chosen.
        """

    def check(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme
    ) -> Iterator[Problem]:
        """Yield every reason why this cannot be built, by dotted recipe path."""

    def stages(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, host: Host
    ) -> tuple[BackendStage, ...]:
        """
        The steps from a checkpoint to what is packed, in order.

        The only place where native names appear. The last one's result is packed as
        the engine.
        """

    def serving(
        self,
        recipe: Recipe,
        model: ModelFacts,
        scheme: QuantScheme,
        host: Host,
        versions: Mapping[str, str],
    ) -> Serving:
        """What the package needs; `versions` maps distributions to versions."""

    def proof(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, host: Host
    ) -> Proof:
        """How the packed artifact is tried."""

    def diagnose(self, host: Host) -> Iterator[Finding]:
        """Look at what this machine has of devices and toolchains, for `doctor`."""

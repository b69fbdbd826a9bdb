"""The backend `aotinductor`, as the planner knows it: without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.aotinductor.checks import (
    READ_PACKINGS,
    TARGETS,
    architecture_problems,
    bound_problems,
    scheme_problems,
    target_problems,
)
from lmi_build.backends.aotinductor.options import (
    Options,
    option_problems,
    read_options,
)
from lmi_build.errors import Problem
from lmi_build.spi import (
    BackendStage,
    Finding,
    Params,
    Proof,
    ProviderInfo,
    Serving,
)
from lmi_build.values.stage import Blocker, Estimate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.spi import Host
    from lmi_build.values.model import ModelFacts, ModelGeometry
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import QuantSpec, Recipe

REQUIREMENTS = ("jinja2", "numpy", "safetensors", "tokenizers", "torch")
# What Inductor's settings are called since; older ones would be taken for silence.
MIN_TORCH = (2, 13)
# What processors say that have all of `avx512`.
_AVX512 = frozenset({"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"})
# Measured: 0.9 GB while a graph of 30 blocks is compiled, in each of two processes.
_PROCESS_BYTES = 1_000_000_000


class AotInductorBackend:
    """Native code by PyTorch's own compiler, for CPUs and NVIDIA GPUs."""

    info = ProviderInfo(
        name="aotinductor",
        summary="native code by PyTorch's AOTInductor, float or quantized",
        distributions=REQUIREMENTS,
        salt=3,
        entry="lmi_build.backends.aotinductor.worker:run",
        targets=TARGETS,
        packings=READ_PACKINGS,
        quantized_head=True,
        modules=("torch", "safetensors", "tokenizers"),
    )

    def quantization(self, recipe: Recipe, model: ModelFacts) -> QuantSpec:
        """As it is: every format is read exactly."""
        del model
        return recipe.quantize

    def check(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme
    ) -> Iterator[Problem]:
        """Yield every reason why this cannot be built, by dotted recipe path."""
        yield from target_problems(recipe)
        yield from architecture_problems(recipe, model)
        yield from scheme_problems(scheme)
        yield from option_problems(recipe.compile.options)
        yield from bound_problems(recipe, model)
        for name in recipe.serve.options:
            yield Problem(
                code="serve.unknown-option",
                message=f"the handler of `aotinductor` has no option `{name}`",
                path=f"serve.options.{name}",
                hint="remove the line",
            )

    def lower(self, recipe: Recipe, host: Host) -> Params:
        """The worker's parameters; the only place where native names appear."""
        options, bounds = read_options(recipe.compile.options), recipe.bounds
        is_cpu = recipe.compile.target == "cpu"
        return {
            "batch_sizes": sorted({1, bounds.max_batch_size}),
            "compute_capability": "" if is_cpu else compute_capability(host),
            "context_buckets": list(options.buckets(bounds.max_input_len)),
            "device": recipe.compile.target,
            "dtype": options.dtype,
            "isa": isa_of(options, host) if is_cpu else "",
            "lm_head_dtype": options.lm_head_dtype,
            "max_seq_len": bounds.max_seq_len,
        }

    def stages(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, host: Host
    ) -> tuple[BackendStage, ...]:
        """One: graphs and weights are made from the checkpoint as it is."""
        return (
            BackendStage(
                kind="compile",
                entry=self.info.entry,
                salt=self.info.salt,
                params=self.lower(recipe, host),
                inputs={"checkpoint": "weights"},
                distributions=self.info.distributions,
                estimate=self.estimate(recipe, model, scheme),
                blocker=_blocker(recipe, host),
            ),
        )

    def proof(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, host: Host
    ) -> Proof:
        """It is loaded, asked and compared with the float model."""
        del recipe, model, scheme, host
        return Proof(distributions=self.info.distributions)

    def diagnose(self, host: Host) -> Iterator[Finding]:
        """A C++ compiler, which the building machine alone needs."""
        answer = host.ask(("g++", "--version"))
        found = answer.output.strip().splitlines()
        yield Finding(
            name="g++",
            works=answer.status == 0,
            evidence=found[0] if answer.status == 0 and found else "not found",
            fix="install it on the build machine: `apt-get install g++`",
        )

    def serving(
        self,
        recipe: Recipe,
        model: ModelFacts,
        scheme: QuantScheme,
        host: Host,
        versions: Mapping[str, str],
    ) -> Serving:
        """What the package needs; `versions` maps distributions to versions."""
        del model, scheme
        bounds, params = recipe.bounds, self.lower(recipe, host)
        return Serving(
            handler="aotinductor",
            # `+cpu` names a build of torch that the package index does not have.
            requirements=tuple(
                f"{name}=={versions[name].partition('+')[0]}" for name in REQUIREMENTS
            ),
            properties={
                # One engine answers one HTTP request at a time; a request may hold
                # `max_batch_size` prompts, which are answered side by side.
                "batch_size": "1",
                "minWorkers": "1",
                "maxWorkers": "1",
            },
            engine_dir="engine",
            settings={
                "schema": "lmi-build/handler/v1",
                "engine_dir": "engine",
                "bounds": {
                    "max_input_len": bounds.max_input_len,
                    "max_output_len": bounds.max_output_len,
                    "max_seq_len": bounds.max_seq_len,
                    "max_batch_size": bounds.max_batch_size,
                },
            },
            compatibility={
                "torch": versions["torch"].partition("+")[0],
                "isa": params["isa"],
                "compute_capability": params["compute_capability"],
                # Two builds by the same compiler give the same bytes.
                "varies_with": ["C++ compiler"],
            },
        )

    def estimate(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme
    ) -> Estimate:
        """Bytes on disk and in memory."""
        options = read_options(recipe.compile.options)
        coded = recipe.quantize.lm_head
        weights = _weight_bytes(model, scheme, options, coded_head=coded)
        return Estimate(
            disk_bytes=weights + (16 << 20),
            scratch_bytes=64 << 20,
            ram_bytes=2 * _PROCESS_BYTES + weights,
        )


def isa_of(options: Options, host: Host) -> str:
    """The instructions that a CPU's engine is compiled for."""
    if options.isa != "default":
        return options.isa
    flags = _cpu_flags(host)
    return "avx512" if flags >= _AVX512 else "avx2"


def compute_capability(host: Host) -> str:
    """Of the first GPU here, such as `9.0`; empty without one."""
    words = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    answer = host.ask(words)
    lines = answer.output.strip().splitlines()
    return lines[0].strip() if answer.status == 0 and lines else ""


def _cpu_flags(host: Host) -> frozenset[str]:
    answer = host.ask(("grep", "-m1", "^flags", "/proc/cpuinfo"))
    return frozenset(answer.output.split()) if answer.status == 0 else frozenset()


def _blocker(recipe: Recipe, host: Host) -> Blocker | None:
    """What this machine lacks to compile."""
    if host.ask(("g++", "--version")).status != 0:
        return Blocker(
            code="compile.no-compiler",
            message="there is no C++ compiler `g++`, which turns graphs into native"
            " code",
            hint="install it on the build machine: `apt-get install g++`",
        )
    if recipe.compile.target == "cuda" and not compute_capability(host):
        return Blocker(
            code="compile.no-gpu",
            message="graphs for a GPU are compiled on one, and there is none here",
            hint="build on a machine with the GPU that will serve",
        )
    torch = host.versions(("torch",))["torch"]
    if torch is not None and _release(torch) < MIN_TORCH:
        least = ".".join(map(str, MIN_TORCH))
        return Blocker(
            code="compile.old-torch",
            message=f"torch {torch} is installed, `aotinductor` needs {least} or later",
            hint=f"pip install 'torch>={least}'",
        )
    options = read_options(recipe.compile.options)
    if recipe.compile.target == "cpu" and options.isa == "avx512":
        flags = _cpu_flags(host)
        if flags and not flags >= _AVX512:
            return Blocker(
                code="compile.other-isa",
                message="`isa: avx512` is asked for, and this processor has avx2:"
                " the engine could not be tried here",
                hint="set `isa: avx2`, or build on a processor with avx512",
            )
    return None


def _release(version: str) -> tuple[int, ...]:
    numbers = version.partition("+")[0].split(".")[:2]
    return tuple(int(part) for part in numbers if part.isdigit())


def _weight_bytes(
    model: ModelFacts, scheme: QuantScheme, options: Options, *, coded_head: bool
) -> int:
    """Weights as the engine stores them: the checkpoint's, and perhaps a head."""
    geometry: ModelGeometry = model.geometry
    heads, kv_heads = geometry.num_attention_heads, geometry.num_key_value_heads
    attention = geometry.hidden_size * geometry.head_dim * 2 * (heads + kv_heads)
    layer = attention + 3 * geometry.hidden_size * geometry.intermediate_size
    table = geometry.vocab_size * geometry.hidden_size
    width = 4 if model.dtype == "float32" else 2
    body = geometry.num_layers * layer + (table if coded_head else 0)
    if scheme.packing == "none":
        total = width * body
    else:
        group = scheme.group_size if scheme.group_size > 0 else geometry.hidden_size
        total = body * scheme.weight_bits // 8 + 3 * body // group
    tables = 1 if geometry.tie_word_embeddings or coded_head else 2
    rounded = options.lm_head_dtype == "int8" and not coded_head
    head = table + table // 16 if rounded else 0
    return total + width * table * tables + head


PROVIDER = AotInductorBackend()

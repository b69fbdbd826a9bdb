"""The backend `onnxruntime`, as the planner knows it: without its toolchain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.onnxruntime_options import (
    HEAD_BLOCK_SIZE,
    INTEGER_LEVEL,
    Options,
    option_problems,
    read_options,
)
from lmi_build.backends.onnxruntime_target import (
    CUDA,
    HALF_ERROR,
    provider_of,
    target_problems,
)
from lmi_build.backends.problems import (
    beam_problems,
    own_code_problems,
    single_engine_problems,
    unsupported,
)
from lmi_build.catalog.onnxruntime_models import onnxruntime_models
from lmi_build.errors import Problem
from lmi_build.spi import BackendStage, Finding, Params, Proof, ProviderInfo, Serving
from lmi_build.text import join_words
from lmi_build.values.quant import PACKINGS
from lmi_build.values.stage import Estimate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.spi import Host
    from lmi_build.values.model import ModelFacts, ModelGeometry
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import QuantSpec, Recipe

GROUP_SIZES = (16, 32, 64, 128)
# What serving installs, and the distribution of the build whose version it has.
REQUIREMENTS: Mapping[str, str] = {
    "jinja2": "jinja2",
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "onnxruntime-genai": "onnxruntime-genai",
    "tokenizers": "tokenizers",
}
CUDA_REQUIREMENTS: Mapping[str, str] = {
    "jinja2": "jinja2",
    "numpy": "numpy",
    "onnxruntime-gpu": "onnxruntime",
    "onnxruntime-genai-cuda": "onnxruntime-genai",
    "tokenizers": "tokenizers",
}

# How far activations of 8 bits take logits: 0.031 on small random models, whose sums
# hide less of it than a trained model's.
INTEGER_ERROR = 0.05
FLOAT_ERROR = 1e-4
# Measured: 410 MB on a model of 0.5 MB, and on SmolLM2-135M two float32 copies of the
# largest matrix more, while the head and the embedding are converted.
_BASE_RAM_BYTES = 450_000_000


class OnnxRuntimeBackend:
    """ONNX Runtime GenAI, on a CPU or with CUDA."""

    info = ProviderInfo(
        name="onnxruntime",
        summary="ONNX Runtime GenAI engines for CPUs and CUDA, float or quantized",
        distributions=(
            "jinja2",
            "numpy",
            "onnx",
            "onnx-ir",
            "onnxruntime",
            "onnxruntime-genai",
            "safetensors",
            "tokenizers",
            "torch",
            "transformers",
        ),
        salt=2,
        entry="lmi_build.backends.onnxruntime_worker:run",
        targets=("cpu", "cuda"),
        packings=PACKINGS,
        quantized_head=True,
        modules=("onnxruntime", "onnxruntime_genai", "onnx_ir", "torch"),
    )

    def quantization(self, recipe: Recipe, model: ModelFacts) -> QuantSpec:
        """As it is: every format is read exactly."""
        del model
        return recipe.quantize

    def check(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme
    ) -> Iterator[Problem]:
        """Yield every reason why this cannot be built, by dotted recipe path."""
        head = str(recipe.compile.options.get("lm_head_dtype", "float32"))
        yield from target_problems(recipe, scheme, lm_head_dtype=head)
        yield from single_engine_problems(
            recipe.compile, backend="onnxruntime", engine_of="ONNX Runtime"
        )
        yield from _architecture_problems(recipe, model, scheme)
        yield from _scheme_problems(scheme)
        yield from option_problems(recipe.compile.options)
        for name in recipe.serve.options:
            yield Problem(
                code="serve.unknown-option",
                message=f"the handler of `onnxruntime` has no option `{name}`",
                path=f"serve.options.{name}",
                hint="remove the line",
            )
        given = recipe.bounds.max_num_tokens
        if given is not None and given < recipe.bounds.max_input_len:
            yield Problem(
                code="bounds.num-tokens",
                message=f"{given} tokens of one pass are too few: `onnxruntime`"
                f" computes a prompt in one, of up to {recipe.bounds.max_input_len}",
                path="bounds.max_num_tokens",
                hint="remove the line",
            )
        yield from beam_problems(recipe)

    def lower(self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme) -> Params:
        """The worker's parameters; the only place where native names appear."""
        options = read_options(recipe.compile.options)
        products: Params = (
            {"products": "integer"} if _integer_products(scheme, options) else {}
        )
        row = onnxruntime_models().get(model.geometry.architecture)
        # Engines before this was said looked at every position.
        windows: Params = {"windows": "every-layer"} if row and row.windowed else {}
        provider = provider_of(recipe.compile.target)
        cuda: Params = {"provider": CUDA} if provider == CUDA else {}
        rounded = options.lm_head_dtype == "int8"
        head: Params = {"lm_head_block_size": HEAD_BLOCK_SIZE} if rounded else {}
        return {
            **products,
            **windows,
            **cuda,
            **head,
            "accuracy_level": options.accuracy_level,
            "block_size": options.block_size,
            "intra_op_num_threads": options.intra_op_num_threads,
            "lm_head_dtype": options.lm_head_dtype,
            "max_seq_len": recipe.bounds.max_seq_len,
            "num_layers": model.geometry.num_layers,
            "packing": scheme.packing,
            "qkv_accuracy_level": options.qkv_accuracy_level,
        }

    def stages(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, host: Host
    ) -> tuple[BackendStage, ...]:
        """One: ONNX Runtime's builder reads the checkpoint as it is."""
        del host
        return (
            BackendStage(
                kind="compile",
                entry=self.info.entry,
                salt=self.info.salt,
                params=self.lower(recipe, model, scheme),
                inputs={"checkpoint": "weights"},
                distributions=self.info.distributions,
                estimate=self.estimate(recipe, model, scheme),
            ),
        )

    def proof(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, host: Host
    ) -> Proof:
        """
        It is loaded, asked and compared with the float model.

        An engine for CUDA is, too: by the kernels for CPUs, where there is no GPU.
        """
        del model, host
        return Proof(
            distributions=self.info.distributions,
            relative_error=_relative_error(recipe, scheme),
        )

    def diagnose(self, host: Host) -> Iterator[Finding]:
        """Its packages are all it needs, and those are tried by importing them."""
        del host
        yield from ()

    def serving(
        self,
        recipe: Recipe,
        model: ModelFacts,
        scheme: QuantScheme,
        host: Host,
        versions: Mapping[str, str],
    ) -> Serving:
        """What the package needs; `versions` maps distributions to versions."""
        del model, scheme, host
        bounds = recipe.bounds
        cuda = provider_of(recipe.compile.target) == CUDA
        names = CUDA_REQUIREMENTS if cuda else REQUIREMENTS
        return Serving(
            handler="onnxruntime_genai",
            requirements=tuple(
                f"{name}=={versions[known]}" for name, known in names.items()
            ),
            properties={
                # One engine answers one HTTP request at a time; a request may hold
                # `max_batch_size` prompts. Merging requests of different clients
                # would give all of them the error of one.
                "batch_size": "1",
                # Each worker holds an engine of its own.
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
        )

    def estimate(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme
    ) -> Estimate:
        """Bytes on disk and in memory."""
        options = read_options(recipe.compile.options)
        coded = recipe.quantize.lm_head
        disk = _engine_bytes(model.geometry, scheme, options, coded_head=coded)
        geometry = model.geometry
        table = 4 * geometry.vocab_size * geometry.hidden_size
        # A float build holds the 16-bit model beside what it writes tensor by tensor.
        held = disk if scheme.packing != "none" else disk // 2
        return Estimate(
            disk_bytes=disk,
            scratch_bytes=0,
            ram_bytes=_BASE_RAM_BYTES + held + 2 * table,
        )


def _integer_products(scheme: QuantScheme, options: Options) -> bool:
    """Whether 8-bit activations are computed exactly as the checkpoint means them."""
    return (
        scheme.packing == "int-quantized"
        and scheme.activation_scheme != "none"
        and scheme.activation_dtype == "int"
        and scheme.group_size == -1
        and options.accuracy_level == INTEGER_LEVEL
    )


def _relative_error(recipe: Recipe, scheme: QuantScheme) -> float:
    """What the types of the engine's activations add; packed weights add nothing."""
    if provider_of(recipe.compile.target) == CUDA:
        return HALF_ERROR
    options = read_options(recipe.compile.options)
    packed = scheme.packing != "none" and scheme.weight_dtype == "int"
    levels = {options.accuracy_level, options.qkv_accuracy_level}
    if options.lm_head_dtype == "int8" or (packed and INTEGER_LEVEL in levels):
        return INTEGER_ERROR
    return FLOAT_ERROR


def _architecture_problems(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme
) -> Iterator[Problem]:
    name = model.geometry.architecture
    row = onnxruntime_models().get(name)
    if row is None or row.refused:
        why = f": {row.refused}" if row is not None else ""
        rows = onnxruntime_models().values()
        built = [each.name for each in rows if not each.refused]
        yield unsupported(
            f"the model's architecture `{name}` is not supported by `onnxruntime`{why}",
            "model.source",
            f"use a model of {join_words(built)}",
        )
    elif scheme.packing != "none" and not row.packed:
        yield unsupported(
            f"`{name}` is supported in float only, not with packed weights",
            "quantize.method",
            "set `method: none`",
        )
    yield from own_code_problems(recipe, backend="onnxruntime")


def _scheme_problems(scheme: QuantScheme) -> Iterator[Problem]:
    if scheme.packing not in PACKINGS:
        yield unsupported(
            f"`onnxruntime` does not read weights packed as `{scheme.packing}`",
            "quantize.method",
            f"use {join_words(PACKINGS[1:])}",
        )
        return
    if scheme.weight_dtype == "float":
        # Weights in fp8 are stored as float32, with a note: any will do.
        return
    if scheme.weight_bits not in {4, 8}:
        yield unsupported(
            f"{scheme.weight_bits}-bit weights are not supported by `onnxruntime`",
            "quantize.bits",
            "set `bits: 4` or `bits: 8`",
        )
    if scheme.group_size != -1 and scheme.group_size % 16:
        yield unsupported(
            f"`group_size` is {scheme.group_size}; blocks are multiples of 16 channels",
            "quantize.group_size",
            f"use {join_words([str(size) for size in GROUP_SIZES])}",
        )


def _engine_bytes(
    geometry: ModelGeometry,
    scheme: QuantScheme,
    options: Options,
    *,
    coded_head: bool,
) -> int:
    """Weights as the engine stores them: embedding in 16 bits, the rest as asked."""
    heads, kv_heads = geometry.num_attention_heads, geometry.num_key_value_heads
    attention = geometry.hidden_size * geometry.head_dim * 2 * (heads + kv_heads)
    layer = attention + 3 * geometry.hidden_size * geometry.intermediate_size
    table = geometry.vocab_size * geometry.hidden_size
    body = geometry.num_layers * layer
    group = scheme.group_size if scheme.group_size > 0 else 128
    block = min(group, options.block_size)
    head_bytes = 4 * table if options.lm_head_dtype == "float32" else table * 9 // 8
    if coded_head:
        body += table
        head_bytes = 0
    if scheme.weight_dtype == "float":
        body_bytes = 4 * body
    else:
        body_bytes = body * scheme.weight_bits // 8 + 4 * body // block
    caches = 4 * geometry.max_position_embeddings * geometry.head_dim
    return body_bytes + head_bytes + 2 * table + caches


PROVIDER = OnnxRuntimeBackend()

"""The backend `vllm`, which compiles nothing: folders for LMI's own handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.preflight import read_gpus
from lmi_build.backends.vllm.bounds import lower_bounds
from lmi_build.backends.vllm.documents import is_older
from lmi_build.backends.vllm.folder_worker import ENTRY, SALT
from lmi_build.backends.vllm.memory import choose_share, subject_of
from lmi_build.backends.vllm.notes import folder_notes
from lmi_build.backends.vllm.recipe_checks import float_dtype, recipe_problems
from lmi_build.backends.vllm.serving_keys import Told, serving_properties
from lmi_build.backends.vllm.target import Target, find_target, target_problems
from lmi_build.errors import LmiBuildError
from lmi_build.sizing.weights import checkpoint_bytes
from lmi_build.spi import BackendStage, Finding, Proof, ProviderInfo, Serving
from lmi_build.values.quant import PACKINGS
from lmi_build.values.stage import Estimate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.digest import JSONValue
    from lmi_build.errors import Problem
    from lmi_build.spi import Host, Params
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import QuantSpec, Recipe

PROOF_ENTRY = "lmi_build.verify.vllm:run"
_RAM_BYTES = 64 << 20


class VllmBackend:
    """Pre-quantized or plain Hugging Face folders with exact serving settings."""

    info = ProviderInfo(
        name="vllm",
        summary="pre-quantized folders for LMI's vLLM images, without a compiler",
        distributions=(),
        salt=SALT,
        entry=ENTRY,
        further_entries=(PROOF_ENTRY,),
        targets=("instances with NVIDIA GPUs",),
        packings=PACKINGS,
        modules=("numpy", "safetensors", "torch"),
    )

    def quantization(self, recipe: Recipe, model: ModelFacts) -> QuantSpec:
        """What the recipe says: every format that a method writes by itself is read."""
        del model
        return recipe.quantize

    def check(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme
    ) -> Iterator[Problem]:
        """Yield every reason why this cannot be built, by dotted recipe path."""
        problems = [*target_problems(recipe)]
        yield from problems
        if not problems:
            yield from recipe_problems(recipe, model, scheme, find_target(recipe))

    def stages(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, host: Host
    ) -> tuple[BackendStage, ...]:
        """The folder, which shares its weights with the checkpoint."""
        del host
        target = find_target(recipe)
        subject = subject_of(recipe, model, scheme)
        return (
            BackendStage(
                kind="checkpoint",
                entry=ENTRY,
                salt=SALT,
                params={"older": is_older(target.release.transformers)},
                inputs={"checkpoint": "weights"},
                estimate=Estimate(
                    disk_bytes=checkpoint_bytes(subject.table, scheme),
                    ram_bytes=_RAM_BYTES,
                ),
                notes=tuple(folder_notes(recipe, model, scheme, target)),
                platform="any",
            ),
        )

    def serving(
        self,
        recipe: Recipe,
        model: ModelFacts,
        scheme: QuantScheme,
        host: Host,
        versions: Mapping[str, str],
    ) -> Serving:
        """What the package needs; nothing of it hangs on what is installed here."""
        del host, versions
        target = find_target(recipe)
        bounds = lower_bounds(recipe.bounds, target)
        return Serving(
            handler="",
            requirements=(),
            properties=serving_properties(
                target.handler, told(recipe, model, scheme, target)
            ),
            engine_dir=".",
            settings={},
            tokenizer_dir=".",
            tokenizer_class="known" if is_older(target.release.transformers) else "",
            model_files=("generation_config.json",),
            compatibility=_compatibility(recipe, target),
            bounds={"max_num_tokens": bounds.max_num_tokens},
        )

    def proof(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, host: Host
    ) -> Proof:
        """Its files, what the images will do with them, and its numbers."""
        del host
        target = find_target(recipe)
        return Proof(
            distributions=(),
            entry=PROOF_ENTRY,
            params={
                "release": target.release.name,
                "properties": serving_properties(
                    target.handler, told(recipe, model, scheme, target)
                ),
            },
            weights=recipe.quantize.method != "none",
        )

    def diagnose(self, host: Host) -> Iterator[Finding]:
        """GPUs, which building does not need."""
        try:
            gpus = read_gpus(host.ask)
        except LmiBuildError as error:
            yield Finding(
                name="GPUs",
                works=True,
                evidence=f"{error.message}; folders for vLLM are built without one",
            )
            return
        for gpu in gpus:
            yield Finding(
                name=f"GPU {gpu.index}",
                works=True,
                evidence=f"{gpu.name}, compute capability {gpu.compute_capability}",
            )


def told(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, target: Target
) -> Told:
    """What a recipe that nothing is wrong with tells its server."""
    spec = recipe.compile
    return Told(
        bounds=lower_bounds(recipe.bounds, target),
        tensor_parallel_size=spec.tensor_parallel_size,
        pipeline_parallel_size=spec.pipeline_parallel_size,
        dtype=float_dtype(recipe, model),
        share=choose_share(recipe, model, scheme, target).value,
        kv_cache_dtype=scheme.kv_cache_dtype,
        options=recipe.serve.options,
        trust_remote_code=recipe.model.trust_remote_code,
    )


def _compatibility(recipe: Recipe, target: Target) -> Params:
    """What the artifact is bound to."""
    release, machine = target.release, target.instance
    found: dict[str, JSONValue] = {
        "architecture": "x86_64",
        "device": machine.device,
        "compute_capability": machine.compute_capability,
        "instance_type": machine.name,
        "kind": "hf-folder",
        "release": release.name,
        "handler": target.handler.name,
        "num_ranks": recipe.compile.tensor_parallel_size
        * recipe.compile.pipeline_parallel_size,
    }
    if target.vllm:
        found["vllm"] = target.vllm
    return found


PROVIDER = VllmBackend()

"""Recipes for a backend under test, told apart by what it says that it can do."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmi_build import registry
from lmi_build.catalog.instances import instances
from lmi_build.digest import canonical_json, digest_bytes
from lmi_build.package.handler_files import handler_digest
from lmi_build.plan import planner
from lmi_build.recipe.load import parse_recipe
from lmi_build.spi import Answer, Host
from lmi_build.values.model import (
    FileFact,
    ModelFacts,
    TensorFact,
    geometry_from_config,
)
from lmi_build.values.recipe import COMPILER
from lmi_build.values.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lmi_build.catalog.instances import Instance
    from lmi_build.digest import JSONValue
    from lmi_build.errors import Problem
    from lmi_build.plan.planner import World
    from lmi_build.spi import Backend, Serving
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import Recipe

CPU = "cpu"
METHODS = ("none", "gptq", "awq", "smoothquant", "int8", "fp8")
RANKS = (1, 2)
BOUNDS: Mapping[str, int] = MappingProxyType(
    {"max_input_len": 96, "max_output_len": 32, "max_batch_size": 2}
)
# Wide enough for groups of 128 on each of two ranks.
_SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 1024,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """
    A recipe as a backend is asked about it.

    Args:
        asked: The recipe as it was written.
        recipe: With everything settled that the backend settles.
        facts: The model.
        scheme: What its weights are when the backend gets them.
    """

    asked: Recipe
    recipe: Recipe
    facts: ModelFacts
    scheme: QuantScheme


def llama_facts(architecture: str = "LlamaForCausalLM") -> ModelFacts:
    """
    A small Llama by its sizes alone.

    Args:
        architecture: What its `config.json` calls it; any other name makes it a model
            that nobody knows.
    """
    known = architecture == "LlamaForCausalLM"
    config: dict[str, JSONValue] = {
        "architectures": [architecture],
        "model_type": "llama" if known else architecture.lower(),
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        **_SIZES,
    }
    tensors = tuple(
        TensorFact(name=name, dtype="bfloat16", shape=shape, file="model.safetensors")
        for name, shape in sorted(_shapes().items())
    )
    return ModelFacts(
        kind="folder",
        source="./model",
        location="/nowhere/model",
        revision="",
        geometry=geometry_from_config(config),
        config=config,
        files=tuple(
            FileFact(path=path, size=1000, digest=digest_bytes(path.encode()))
            for path in ("config.json", "model.safetensors", "tokenizer.json")
        ),
        tensors=tensors,
        dtype="bfloat16",
    )


def _shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of that Llama."""
    wide, inner, words = (
        _SIZES[name] for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    linears = {
        "self_attn.q_proj": (wide, wide),
        "self_attn.k_proj": (wide, wide),
        "self_attn.v_proj": (wide, wide),
        "self_attn.o_proj": (wide, wide),
        "mlp.gate_proj": (inner, wide),
        "mlp.up_proj": (inner, wide),
        "mlp.down_proj": (wide, inner),
        "input_layernorm": (wide,),
        "post_attention_layernorm": (wide,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(_SIZES["num_hidden_layers"])
        for name, shape in linears.items()
    }
    table = {
        "model.embed_tokens.weight": (words, wide),
        "lm_head.weight": (words, wide),
    }
    return {**shapes, **table, "model.norm.weight": (wide,)}


def _size(row: Instance) -> tuple[int, int, str]:
    return row.num_devices, row.memory_bytes, row.name


@cache
def targets() -> tuple[str, ...]:
    """`cpu`, and the smallest instance of each accelerator of the catalogue."""
    smallest: dict[str, Instance] = {}
    for row in sorted(instances().values(), key=_size):
        if row.accelerator != "none":
            smallest.setdefault(row.device, row)
    return (CPU, *sorted(row.name for row in smallest.values()))


def recipe_of(  # noqa: PLR0913 - each is a field of the recipe
    backend: Backend,
    *,
    target: str = CPU,
    method: str = "none",
    quantize: Mapping[str, JSONValue] | None = None,
    ranks: int = 1,
    source: str = "./model",
    file: str = "recipe.yaml",
    bounds: Mapping[str, int] = BOUNDS,
    options: Mapping[str, JSONValue] | None = None,
    verify: Mapping[str, JSONValue] | None = None,
) -> Recipe:
    """
    A recipe with a place for each of its values.

    Args:
        backend: Named by it.
        target: `cpu` or an instance type.
        method: Of quantization, where `quantize` does not say more.
        quantize: Its section.
        ranks: `tensor_parallel_size`.
        source: The model.
        file: Where the recipe is said to lie.
        bounds: What is promised.
        options: `compile.options`.
        verify: Its section.

    Raises:
        RecipeInvalid: The text is no recipe.
    """
    document = {
        "schema": "lmi-build/v1",
        "name": "law",
        "model": {"source": source},
        "quantize": dict(quantize or {"method": method}),
        "bounds": dict(bounds),
        "compile": {
            "backend": backend.info.name,
            "target": target,
            "tensor_parallel_size": ranks,
            "options": dict(options or {}),
        },
        **({"verify": dict(verify)} if verify else {}),
    }
    (recipe,) = parse_recipe(json.dumps(document, indent=1), file=file)
    return recipe


def settle(backend: Backend, recipe: Recipe, facts: ModelFacts) -> Case:
    """What the planner would ask the backend about; see `plan.planner`."""
    spec = backend.quantization(recipe, facts)
    if spec.provider == COMPILER:
        scheme = planner.compiler_scheme(spec)
    elif spec.method == "none":
        scheme = planner.float_scheme(facts)
    else:
        scheme = registry.quantizer(spec.provider).scheme(spec, facts)
    settled = replace(recipe, quantize=spec)
    return Case(asked=recipe, recipe=settled, facts=facts, scheme=scheme)


def problems(backend: Backend, case: Case) -> list[Problem]:
    """What the backend says against a case; also what the quantizer says."""
    spec = case.recipe.quantize
    found: list[Problem] = []
    if spec.method != "none" and spec.provider != COMPILER:
        found += registry.quantizer(spec.provider).check(case.recipe, case.facts)
    return [*found, *backend.check(case.recipe, case.facts, case.scheme)]


def candidates(backend: Backend) -> Iterator[Case]:
    """Yield recipes over targets, methods and ranks, whether it takes them or not."""
    facts = llama_facts()
    for target in targets():
        for method in METHODS:
            for ranks in RANKS:
                recipe = recipe_of(backend, target=target, method=method, ranks=ranks)
                yield settle(backend, recipe, facts)


def accepted(backend: Backend) -> tuple[Case, ...]:
    """The candidates that a backend finds nothing wrong with."""
    return tuple(case for case in candidates(backend) if not problems(backend, case))


def host(*, versions: str | None = "1.0", output: str = "", status: int = 127) -> Host:
    """
    A machine that is the same everywhere.

    Args:
        versions: Of every package; None where nothing is installed.
        output: What every program prints.
        status: How every program ends.
    """
    return Host(
        architecture="x86_64",
        runner="local",
        versions=lambda names: dict.fromkeys(sorted(names), versions),
        ask=lambda words: Answer(status=status, output=output or words[0]),
    )


def world(backend: Backend, facts: ModelFacts) -> World:
    """What the planner may know, with this backend in the place of any other."""
    return planner.World(
        facts={"law": facts},
        quantizer=registry.quantizer,
        backend=lambda _name: backend,
        versions=lambda names: dict.fromkeys(sorted(names), "1.0"),
        handler_digest=handler_digest,
        host=host(),
        num_cores=2,
        settings=Settings(cache_dir=Path("/nowhere")),
    )


def serving_of(backend: Backend, case: Case) -> Serving:
    """What the package would need, with every package in version 1.0."""
    versions = _Always("1.0")
    return backend.serving(case.recipe, case.facts, case.scheme, host(), versions)


class _Always(dict[str, str]):
    """Every name has the same version."""

    def __init__(self, version: str) -> None:
        super().__init__()
        self._version = version

    def __missing__(self, name: str) -> str:
        return self._version


def lowered(backend: Backend, case: Case) -> dict[str, Any]:
    """
    Everything that a backend makes of a recipe, as plain values.

    Returns:
        `stages` (kind to parameters and versions), `serving` (what lies in the
        package) and `proof`.
    """
    recipe, facts, scheme = case.recipe, case.facts, case.scheme
    stages = backend.stages(recipe, facts, scheme, host())
    serving = serving_of(backend, case)
    proof = backend.proof(recipe, facts, scheme, host())
    return {
        "stages": {
            step.kind: {
                "params": step.params,
                "tools": dict(step.tools),
                "platform": step.platform,
                "salt": step.salt,
                "inputs": dict(step.inputs),
            }
            for step in stages
        },
        "serving": {
            "properties": dict(serving.properties),
            "settings": serving.settings,
            "files": dict(serving.files),
            "environment": dict(serving.environment),
            "compatibility": serving.compatibility,
            "requirements": list(serving.requirements),
            "bounds": serving.bounds,
        },
        "proof": proof.params,
    }


def text_of(values: Any) -> str:
    """Plain values in one form, whatever the order of their keys."""
    return canonical_json(values).decode()


def names_in(texts: Iterable[str]) -> tuple[str, ...]:
    """What stands between backticks in texts."""
    return tuple(
        dict.fromkeys(part for text in texts for part in text.split("`")[1::2] if part)
    )

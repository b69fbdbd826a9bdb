"""Plans of one recipe on machines that differ, for tests of locks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build import registry
from lmi_build.digest import Digest, digest_bytes
from lmi_build.plan.locked import Maker, lock_of, open_lock
from lmi_build.plan.planner import World, make_plan
from lmi_build.recipe.load import parse_recipe
from lmi_build.spi import Answer, Host
from lmi_build.toolchains.environment import Pinned
from lmi_build.values.model import (
    FileFact,
    ModelFacts,
    TensorFact,
    geometry_from_config,
)
from lmi_build.values.settings import FOLLOW, LOCKED, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lmi_build.digest import JSONValue
    from lmi_build.values.lock import Lock
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.stage import Plan

RECIPE = """\
schema: lmi-build/v1
name: sample
model: {source: acme/tiny, revision: main}
quantize: {bits: 4, group_size: 32}
matrix:
  quantize.method: [gptq, rtn]
bounds: {max_input_len: 16, max_output_len: 4}
compile: {backend: onnxruntime}
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
_CONFIG: dict[str, JSONValue] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
_SHAPES = {
    "model.embed_tokens.weight": (256, 64),
    "model.norm.weight": (64,),
    **{
        f"model.layers.0.{name}.weight": shape
        for name, shape in {
            "self_attn.q_proj": (64, 64),
            "self_attn.k_proj": (32, 64),
            "self_attn.v_proj": (32, 64),
            "self_attn.o_proj": (64, 64),
            "mlp.gate_proj": (128, 64),
            "mlp.up_proj": (128, 64),
            "mlp.down_proj": (64, 128),
            "input_layernorm": (64,),
            "post_attention_layernorm": (64,),
        }.items()
    },
}
FILES = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class Machine:
    """
    What may differ between two machines, and the world around them.

    Args:
        versions: Of packages; every other one is 1.0, and None is absent.
        architecture: Processor.
        num_cores: Cores.
        threads: What the user asked for; 0 is nothing.
        commit: What `main` of the model is at.
        contents: Content of each file of the model, by path.
        maker: Version of lmi-build, and digest of its catalogue.
    """

    versions: Mapping[str, str | None] = field(default_factory=dict)
    architecture: str = "x86_64"
    num_cores: int = 2
    threads: int = 0
    commit: str = COMMIT
    contents: Mapping[str, str] = field(default_factory=dict)
    maker: tuple[str, str] = ("0.1.0", "sha256:" + "a" * 64)

    def version(self, names: Iterable[str]) -> dict[str, str | None]:
        """What is installed."""
        return {name: self.versions.get(name, "1.0") for name in sorted(names)}

    def facts(self) -> ModelFacts:
        """The model as the hub has it."""
        return ModelFacts(
            kind="hub",
            source="acme/tiny",
            location="acme/tiny",
            revision=self.commit,
            geometry=geometry_from_config(_CONFIG),
            config=_CONFIG,
            files=tuple(
                FileFact(
                    path=path,
                    size=100,
                    digest=digest_bytes(self.contents.get(path, path).encode()),
                )
                for path in FILES
            ),
            tensors=tuple(
                TensorFact(name=n, dtype="bfloat16", shape=s, file="model.safetensors")
                for n, s in sorted(_SHAPES.items())
            ),
            dtype="bfloat16",
        )


def recipes(lock: Lock | None = None, text: str = RECIPE) -> tuple[Recipe, ...]:
    """The variants of the sample recipe, with a lock or without."""
    return tuple(replace(recipe, lock=lock) for recipe in parse_recipe(text))


def settings_of(machine: Machine, *, locked: bool = False) -> Settings:
    """What the user of a machine says."""
    return Settings(
        cache_dir=Path("/nowhere"),
        threads=machine.threads,
        lock_mode=LOCKED if locked else FOLLOW,
    )


def world_of(machine: Machine, found: Iterable[Recipe], settings: Settings) -> World:
    """What the planner may know on a machine; recipes share one model."""
    facts = machine.facts()
    return World(
        facts={recipe.name: facts for recipe in found},
        quantizer=registry.quantizer,
        backend=registry.backend,
        versions=machine.version,
        handler_digest=lambda name: Digest(digest_bytes(name.encode())),
        host=Host(
            architecture=machine.architecture,
            runner="local",
            versions=machine.version,
            ask=lambda words: Answer(status=127, output=words[0]),
        ),
        num_cores=machine.num_cores,
        settings=settings,
        toolchain=lambda name: Pinned(versions={name: "1.0"}),
    )


def plan_on(
    machine: Machine, lock: Lock | None = None, *, locked: bool = False
) -> tuple[Plan, Lock]:
    """The plan that a machine makes, and the lock of it."""
    settings = settings_of(machine, locked=locked)
    found = [open_lock(recipe, settings) for recipe in recipes(lock)]
    world = world_of(machine, found, settings)
    plan = make_plan("sample", found, world)
    lmi_build, catalog = machine.maker
    maker = Maker(
        lmi_build=lmi_build, catalog=catalog, architecture=machine.architecture
    )
    return plan, lock_of(found, world.facts, plan, maker)


def keys(plan: Plan) -> list[str]:
    """The keys of a plan's stages, in order."""
    return [stage.key for stage in plan.stages]

"""
Every shipped recipe lowers to what it lowered to before.

The key documents stand in `plans/`; a change there is a change of keys, and every
user builds anew. Versions, handler and model are fixed, so that only our own code
can move a line.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lmi_build import registry
from lmi_build.digest import Digest, JSONValue, digest_bytes
from lmi_build.plan.planner import World, make_plan
from lmi_build.quantizers.calibration import calibration_digest
from lmi_build.recipe.load import load_recipe
from lmi_build.spi import Answer, Host
from lmi_build.values.model import (
    FileFact,
    ModelFacts,
    TensorFact,
    geometry_from_config,
)
from lmi_build.values.recipe import CalibrationSpec
from lmi_build.values.settings import Settings

GOLDEN = Path(__file__).parent / "plans"
RECIPES = Path(__file__).parents[2] / "recipes"
ALL = sorted(RECIPES.glob("*/*.yaml"))
# The sizes of SmolLM2-135M-Instruct, with two layers.
CONFIG: dict[str, JSONValue] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
}
LINEARS = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}


def facts() -> ModelFacts:
    """A model pinned down, without a model."""
    shapes = {"model.embed_tokens.weight": (49152, 576), "model.norm.weight": (576,)}
    for layer in range(2):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.{n}.weight": shape for n, shape in LINEARS.items()}
        shapes[f"{block}.input_layernorm.weight"] = (576,)
        shapes[f"{block}.post_attention_layernorm.weight"] = (576,)
    return ModelFacts(
        kind="gguf",
        source="model.gguf",
        location="/nowhere/model.gguf",
        revision="",
        geometry=geometry_from_config(CONFIG),
        config=CONFIG,
        files=(
            FileFact(path="model.gguf", size=98362432, digest=digest_bytes(b"model")),
        ),
        tensors=tuple(
            TensorFact(name=n, dtype="bfloat16", shape=s, file="model.safetensors")
            for n, s in sorted(shapes.items())
        ),
        dtype="bfloat16",
    )


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_plan_is_what_it_was(path: Path, update_golden: bool) -> None:  # noqa: FBT001
    """The key document of every stage is the recorded one."""
    recipes = load_recipe(path)
    world = World(
        facts={recipe.name: facts() for recipe in recipes},
        quantizer=registry.quantizer,
        backend=registry.backend,
        versions=lambda names: dict.fromkeys(sorted(names), "1.0"),
        handler_digest=lambda name: Digest(digest_bytes(name.encode())),
        host=Host(
            architecture="x86_64",
            runner="local",
            versions=lambda names: dict.fromkeys(sorted(names), "1.0"),
            ask=lambda words: Answer(status=127, output=words[0]),
        ),
        num_cores=2,
        settings=Settings(cache_dir=Path("/nowhere")),
    )

    plan = make_plan(path.stem, recipes, world)

    document = {stage.name: stage.key_document() for stage in plan.stages}
    text = json.dumps(document, indent=1, sort_keys=True, default=dict) + "\n"
    # Keys follow from the documents; Python's own text differs between its releases.
    names = {stage.key: f"<{stage.name}>" for stage in plan.stages}
    names[calibration_digest(CalibrationSpec())] = "<python-docs>"
    for digest, name in names.items():
        text = text.replace(digest, name)
    text = re.sub(r'("digest": )"sha256:[0-9a-f]{64}"', r'\1"<digest>"', text)
    golden = GOLDEN / f"{path.parent.name}.{path.stem}.json"
    if update_golden:
        golden.write_text(text)
    assert golden.read_text() == text


def test_no_plan_names_a_place() -> None:
    """No key document of a shipped recipe holds a path of a machine."""
    for path in GOLDEN.glob("*.json"):
        assert "/nowhere" not in path.read_text(), path.name

"""
What a plan lets through, the worker that writes the checkpoint takes.

Sizes, ranks, methods and what stays in float are any; the model is quantized and
converted for real, and both sides are asked.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hypothesis import HealthCheck, assume, event, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bench.folder_facts import folder_facts
from lmi_build.backends.trtllm import checkpoint_worker
from lmi_build.backends.trtllm.backend import PROVIDER
from lmi_build.backends.trtllm.checkpoint_plan import plan_checkpoint
from lmi_build.backends.trtllm.checkpoint_shards import Mapping2D
from lmi_build.backends.trtllm.coded_names import planned_modules
from lmi_build.backends.trtllm.models import trtllm_models
from lmi_build.backends.trtllm.resolved import algorithm_of, float_dtype, ranks_of
from lmi_build.backends.trtllm.source_model import SourceModel
from lmi_build.backends.trtllm.target import find_target
from lmi_build.catalog.architectures import architectures
from lmi_build.errors import LmiBuildError
from lmi_build.events import ignore
from lmi_build.quantizers.builtin import PROVIDER as BUILTIN
from lmi_build.spi import Job
from lmi_build.values.model import geometry_from_config
from lmi_build.values.recipe import CompileSpec, QuantSpec
from packed import sample_recipe
from stage_jobs import quantize
from trtllm_reader import read_model

if TYPE_CHECKING:
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import Recipe

# TensorRT-LLM 0.9, 0.12 and 0.21: names, patterns, and padding.
RELEASES = (
    "djl-tensorrtllm-0.28.0",
    "djl-tensorrtllm-0.30.0",
    "djl-tensorrtllm-0.33.0",
)
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "rtn", "bits": 4, "group_size": 64},
    {"method": "rtn", "bits": 4, "group_size": 128, "sym": False},
    {"method": "int8", "bits": 8},
    {"method": "int8", "bits": 8, "activations": "dynamic"},
)
IGNORED: tuple[tuple[str, ...], ...] = (
    (),
    ("*.q_proj",),
    ("*.k_proj", "*.v_proj"),
    ("*.q_proj", "*.k_proj", "*.v_proj"),
    ("*.gate_proj",),
    ("*.0.mlp.down_proj",),
    ("model.layers.0.*",),
    ("model.layers.1.self_attn.v_proj",),
    ("*.mlp.*",),
    ("*.w1",),
    ("*.experts.*",),
)
# What hangs on sizes and on what stays in float.
CODES = {"trtllm.layout", "trtllm.float-linears", "trtllm.coded-experts"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, and what is wanted of it."""

    config: dict[str, Any]
    recipe: Recipe


def _recipe(
    method: dict[str, Any], ignored: tuple[str, ...], release: str, tp: int, pp: int
) -> Recipe:
    return sample_recipe(
        quantize=QuantSpec(**method, ignore=("lm_head", *ignored)),
        compile=CompileSpec(
            backend="tensorrt-llm",
            target="ml.p4d.24xlarge",
            release=release,
            artifact="checkpoint",
            tensor_parallel_size=tp,
            pipeline_parallel_size=pp,
        ),
    )


def _config(name: str, **changes: Any) -> dict[str, Any]:
    """A model's `config.json`, of small sizes that fit."""
    return {
        "architectures": [name],
        "model_type": {"LlamaForCausalLM": "llama", "MixtralForCausalLM": "mixtral"}[
            name
        ],
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 32,
        "max_position_embeddings": 64,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float16",
        "tie_word_embeddings": False,
        **({"num_local_experts": 2} if name == "MixtralForCausalLM" else {}),
        **changes,
    }


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Sizes that kernels and ranks may or may not divide."""
    name = draw(st.sampled_from(["LlamaForCausalLM"] * 3 + ["MixtralForCausalLM"]))
    keys = draw(st.sampled_from([1, 2, 4]))
    method = draw(st.sampled_from(METHODS))
    unit = max(method.get("group_size", 0), draw(st.sampled_from([32, 64, 64, 128])))
    heads = keys * draw(st.sampled_from([1, 2, 3, 4]))
    config = _config(
        name,
        hidden_size=unit * draw(st.integers(1, 4)),
        intermediate_size=unit * draw(st.integers(1, 6)),
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=max(draw(st.sampled_from([16, 32, 48, 64])), unit // heads),
    )
    fits = IGNORED[-2:] if config.get("num_local_experts") else IGNORED[:-2]
    recipe = _recipe(
        method,
        draw(st.just(()) | st.sampled_from(fits)),
        draw(st.sampled_from(RELEASES)),
        draw(st.sampled_from([1, 2, 4])),
        draw(st.sampled_from([1, 1, 2])),
    )
    return Case(config=config, recipe=recipe)


def _source(config: dict[str, Any]) -> SourceModel:
    name = config["architectures"][0]
    return SourceModel(
        row=trtllm_models()[name],
        architecture=architectures()[name],
        geometry=geometry_from_config(config),
        shapes={"lm_head.weight": (config["vocab_size"], config["hidden_size"])},
        dtype="float16",
        num_experts=config.get("num_local_experts", 0),
    )


def _write(folder: Path, config: dict[str, Any]) -> None:
    """A float model of these sizes: every tensor that a checkpoint is made of."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    blocks = {
        block.source: block.full
        for tensor in plan_checkpoint(_source(config), Mapping2D())[0].tensors
        for block in tensor.blocks
    }
    tensors = {
        name: torch.randn(full if full[1] > 1 else full[:1], generator=generator)
        for name, full in blocks.items()
    }
    save_file(
        {name: tensor.to(torch.float16) for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(config))


def _job(case: Case, facts: ModelFacts, scheme: QuantScheme, root: Path) -> Job:
    """The worker's job, whatever the plan says of it."""
    target = find_target(case.recipe.compile)
    params = {
        **checkpoint_worker.checkpoint_params(
            target.release.trtllm, float_dtype(facts), ranks_of(case.recipe)
        ),
        "algorithm": algorithm_of(facts, scheme, target).to_json(),
    }
    out = root / "out"
    out.mkdir()
    return Job(
        stage="tiny/checkpoint",
        params=params,
        inputs={"checkpoint": root / "quantized" / "out"},
        out=out,
        state=out,
    )


def _refusal(job: Job) -> str:
    """Code of what the worker refuses, or nothing."""
    try:
        checkpoint_worker.run(job, ignore)
    except LmiBuildError as error:
        return error.code
    return ""


LLAMA = _config("LlamaForCausalLM")
GROUPS, BYTES = METHODS[0], METHODS[2]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)
@given(cases())
@example(Case(config=LLAMA, recipe=_recipe(GROUPS, (), RELEASES[1], 2, 1)))
@example(Case(config=LLAMA, recipe=_recipe(GROUPS, (), RELEASES[1], 4, 1)))
@example(Case(config=LLAMA, recipe=_recipe(BYTES, IGNORED[1], RELEASES[1], 1, 1)))
@example(Case(config=LLAMA, recipe=_recipe(BYTES, IGNORED[4], RELEASES[1], 1, 2)))
@example(Case(config=LLAMA, recipe=_recipe(BYTES, IGNORED[6], RELEASES[1], 1, 2)))
def test_plan_and_worker_agree(case: Case) -> None:
    """The one refuses for sizes and for floats exactly where the other does."""
    root = Path(tempfile.mkdtemp())
    try:
        _write(root / "model", case.config)
        facts = folder_facts(root / "model")
        spec = PROVIDER.quantization(case.recipe, facts)
        scheme = BUILTIN.scheme(spec, facts)
        assume(not list(BUILTIN.check(replace(case.recipe, quantize=spec), facts)))
        found = list(PROVIDER.check(case.recipe, facts, scheme))
        planned = {problem.code for problem in found}
        assume(planned <= CODES)
        quantize(root / "quantized", root / "model", spec)

        job = _job(case, facts, scheme, root)
        refused = _refusal(job)

        event(refused or "written")
        assert refused in (planned or {""}), (refused, found)
        if refused:
            assert list(job.out.iterdir()) == []
            return
        names = [tensor.name for tensor in facts.tensors]
        left = planned_modules(names, facts.geometry, spec.ignore)
        if not case.config.get("num_local_experts"):
            assert set(read_model(job.out).coded) == left
    finally:
        shutil.rmtree(root)

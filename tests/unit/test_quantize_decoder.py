"""Our blocks compute what transformers computes, step by step."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tiny_architectures
from decoder_walks import Decoder, run
from lmi_build.catalog.architectures import architectures, find_architecture
from lmi_build.decoders.decoder_config import check_tensors
from lmi_build.quantizers.block_loading import load_block
from lmi_build.quantizers.targets import candidates

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from lmi_build.quantizers.decoder import Block
    from lmi_build.quantizers.steps import Absorb, Step

    Folders = Callable[[str], Path]

# More tokens than one tile of queries, more samples than one chunk.
NUM_SAMPLES, NUM_TOKENS = 3, 150
NAMES = list(tiny_architectures.MODELS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Every tiny model, written once."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("models")

    def find(name: str) -> Path:
        if not (root / name).exists():
            tiny_architectures.make(name, root / name)
        return root / name

    return find


def tokens() -> Tensor:
    """Some token ids."""
    generator = torch.Generator().manual_seed(1)
    shape = (NUM_SAMPLES, NUM_TOKENS)
    return torch.randint(0, tiny_architectures.VOCAB_SIZE, shape, generator=generator)


def reference(model: Any, ids: Tensor) -> list[Tensor]:
    """The residual stream after every block of a model of transformers."""
    caught: list[Tensor] = []
    base = model.base_model
    base = getattr(base, "decoder", base)
    for layer in base.layers if hasattr(base, "layers") else base.h:
        layer.register_forward_hook(
            lambda _m, _i, out: caught.append(out[0] if isinstance(out, tuple) else out)
        )
    with torch.inference_mode():
        model(ids)
    return caught


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((a.double() - b.double()).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_blocks_equal_transformers(name: str, folders: Folders) -> None:
    """
    In float32, the states after every block agree to 5e-6 of the largest value.

    That is some forty float32 roundings; a wrong angle, mask or bias is above 1e-3.
    """
    ids = tokens()
    expected = reference(tiny_architectures.build(name), ids)

    states = list(Decoder(folders(name)).states(ids))

    assert len(states) == len(expected) == tiny_architectures.NUM_LAYERS
    assert all(
        distance(ours, theirs) < 5e-6
        for ours, theirs in zip(states, expected, strict=True)
    )


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "mixtral", "phi"])
def test_bfloat16_is_as_near_as_transformers(name: str, folders: Folders) -> None:
    """
    In bfloat16 we are at most half again as far from float32 as transformers.

    The median over tokens says so: a token between two experts may go elsewhere.
    """
    ids = tokens()
    model = tiny_architectures.build(name)
    exact = reference(model, ids)[0]
    theirs = reference(tiny_architectures.build(name).to(torch.bfloat16), ids)[0]
    decoder = Decoder(folders(name), torch.bfloat16)

    ours = run(decoder.block(0), decoder.embed(ids))

    assert ours.dtype == torch.bfloat16
    error, allowed = (
        (state.float() - exact).norm(dim=-1).median() for state in (ours, theirs)
    )
    assert error <= 1.5 * allowed


def noise(block: Block, *, seed: int = 0) -> Tensor:
    """Something to take through a block."""
    generator = torch.Generator().manual_seed(seed)
    shape = (NUM_SAMPLES, 40, block.config.hidden_size)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_can_be_made_again(name: str, folders: Folders) -> None:
    """The same bits a second time, without a trace, and whose tokens they are."""
    block = Decoder(folders(name)).block(0)
    x_NLD = noise(block).float()
    num_tokens = x_NLD.shape[0] * x_NLD.shape[1]

    def repeat(step: Step, x_TI: Tensor) -> None:
        found = [make() for make in step.again]
        assert len(found) == len(step.chunks)
        assert torch.equal(torch.cat([x_TI[:0], *found]), x_TI)
        if step.token_t is None:
            assert len(x_TI) == num_tokens
        else:
            assert len(step.token_t) == len(x_TI)
            assert bool((step.token_t.diff() > 0).all())

    assert torch.equal(run(block, x_NLD, visit=repeat), run(block, x_NLD))


@pytest.mark.parametrize("name", NAMES)
def test_absorbing_scales_changes_nothing(name: str, folders: Folders) -> None:
    """Scales of every step's inputs, taken out where the step says, cancel exactly."""
    decoder = Decoder(folders(name), torch.float64)
    block, scaled = decoder.block(1), decoder.block(1)
    x_NLD = noise(block)
    found: list[Step] = []

    expected = run(block, x_NLD, visit=lambda step, _: found.append(step))
    generator = torch.Generator().manual_seed(2)
    for step in found:
        if step.absorb is not None and step.searched:
            scale(scaled, step, step.absorb, generator)

    assert any(step.absorb for step in found)
    assert not torch.equal(run(scaled, x_NLD), x_NLD)
    assert distance(run(scaled, x_NLD), expected) < 1e-9
    changed = [k for k, v in scaled.weights.items() if not v.equal(block.weights[k])]
    assert {part for step in found if step.absorb for part in step.searched} <= {
        *changed
    }


def scale(block: Block, step: Step, absorb: Absorb, generator: torch.Generator) -> None:
    """Scale the input channels of a step, and what feeds them back."""
    weight = block.weights[absorb.name]
    factor_R = torch.rand(len(weight), generator=generator, dtype=weight.dtype) + 0.5
    rows = torch.arange(step.num_inputs) if absorb.rows_I is None else absorb.rows_I
    fed_R = torch.zeros(len(weight), dtype=torch.bool)
    fed_R[rows] = True
    factor_R[~fed_R] = 1.0
    for name in (*step.searched, *absorb.readers):
        block.weights[name] = block.weights[name] * factor_R[rows]
    bias = block.weights.get(f"{absorb.name}.bias")
    if bias is not None:
        block.weights[f"{absorb.name}.bias"] = bias / factor_R
    if absorb.kind == "norm":
        weight = (weight + absorb.offset) / factor_R - absorb.offset
    else:
        weight = weight / factor_R[:, None]
    block.weights[absorb.name] = weight


@pytest.mark.parametrize("name", NAMES)
def test_replaced_weights_reach_later_steps(name: str, folders: Folders) -> None:
    """Replacing each step's linears on the way equals replacing them all before."""
    decoder = Decoder(folders(name), torch.float64)
    block, replaced = decoder.block(1), decoder.block(1)
    x_NLD = noise(block)
    parts: list[str] = []
    seen: list[Tensor] = []

    def change(step: Step, x_TI: Tensor) -> None:
        seen.append(x_TI)
        for part in step.parts:
            parts.append(part)
            block.weights[part] = block.weights[part] * 1.1

    result = run(block, x_NLD, visit=change, smoothing=False)
    for part in parts:
        replaced.weights[part] = replaced.weights[part] * 1.1
    again: list[Tensor] = []
    expected = run(
        replaced,
        x_NLD,
        visit=lambda _, x_TI: again.append(x_TI),
        smoothing=False,
        copies=True,
    )

    assert torch.equal(result, expected)
    assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=True))
    assert parts == [name for name in block.weights if name in set(parts)] or sorted(
        parts
    ) == sorted(set(parts))
    assert set(parts) == set(decoder.architecture.linears(decoder.shapes, 1))


@pytest.mark.parametrize("name", NAMES)
def test_every_matrix_is_a_linear_or_kept(name: str, folders: Folders) -> None:
    """The map names every matrix of a block but routers, as the rule without it."""
    decoder = Decoder(folders(name))
    arch, shapes = decoder.architecture, decoder.shapes

    linears = list(candidates(shapes, architecture=arch))

    names = {linear.name for linear in linears}
    assert len(names) == len(linears)
    steering = {*arch.router, arch.shared_router}
    matrices = {
        key.removesuffix(".weight")
        for key, (_, shape) in shapes.items()
        if key.startswith(f"{arch.blocks}.") and len(shape) > 1
    }
    kept = matrices - names
    assert all(
        key.split(".", arch.blocks.count(".") + 2)[-1] in steering for key in kept
    )
    free = candidates(shapes, architecture=None)
    assert {linear.name for linear in free} == names
    for linear in linears:
        block = decoder.block(int(linear.block.rpartition(".")[2]))
        weight = block.weights[linear.name.removeprefix(f"{linear.block}.")]
        assert weight.shape == (linear.num_outputs, linear.num_inputs)


def test_keys_and_values_are_observed(folders: Folders) -> None:
    """What a cache would hold is handed out once per chunk, keys rotated."""
    decoder = Decoder(folders("falcon-new"))
    block = decoder.block(0)
    seen: list[tuple[Tensor, Tensor]] = []
    block.kv_observer = lambda key, value: seen.append((key, value))
    x_NLD = noise(block).float()

    run(block, x_NLD)

    heads = (decoder.config.num_kv_heads, 40, decoder.config.head_dim)
    assert [key.shape for key, _ in seen] == [(2, *heads), (1, *heads)]
    assert all(key.shape == value.shape for key, value in seen)
    y = block.linear(
        "self_attention.query_key_value", block.norm(block.attention_norm, x_NLD)
    )
    y = y.view(NUM_SAMPLES, 40, decoder.config.num_kv_heads, -1, heads[-1])
    assert torch.allclose(
        torch.cat([v for _, v in seen]), y[..., -1, :].transpose(1, 2)
    )
    keys = torch.cat([key for key, _ in seen])
    plain = y[..., -2, :].transpose(1, 2)
    assert torch.allclose(keys.norm(dim=-1), plain.norm(dim=-1), rtol=1e-4)
    assert not torch.allclose(keys[:, :, 1:], plain[:, :, 1:], atol=1e-2)


def test_an_expert_without_tokens_has_steps_of_nothing(folders: Folders) -> None:
    """A router that never chooses an expert leaves it its two empty steps."""
    decoder = Decoder(folders("mixtral"))
    block = decoder.block(0)
    router = block.weights[block.router]
    block.weights[block.router] = router.clone()
    block.weights[f"{block.router}.bias"] = torch.tensor([0.0, 0.0, -1e9, 0.0, 0.0])
    counts: dict[int | None, list[int]] = {}

    def count(step: Step, x_TI: Tensor) -> None:
        counts.setdefault(step.expert, []).append(len(x_TI))

    out = run(block, noise(block).float(), visit=count)

    num_tokens = NUM_SAMPLES * 40
    assert counts[2] == [0, 0]
    assert sum(counts[e][0] for e in range(5)) == 2 * num_tokens
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_share_the_scale_of_their_norm(name: str, folders: Folders) -> None:
    """It is searched once, with all that read the norm; the experts then name it."""
    decoder = Decoder(folders(name))
    block = decoder.block(1 if name == "qwen2_moe" else 0)
    found: list[Step] = []

    run(block, noise(block).float(), visit=lambda step, _: found.append(step))

    searches = [step for step in found if not step.parts]
    assert len(searches) == 1
    absorb = searches[0].absorb
    assert absorb is not None
    later = [step for step in found if step.absorb == absorb and step.parts]
    assert not any(step.searched for step in later)
    assert [part for step in later for part in step.parts] == [*searches[0].searched]
    assert len(later) == decoder.config.num_experts + ("shared" in str(searches))
    kept = {decoder.architecture.shared_router, block.router} - {""}
    assert set(absorb.readers) == kept
    assert found.index(searches[0]) < found.index(later[0])


def test_prefixes_may_be_left_out(folders: Folders) -> None:
    """A file that names blocks without `transformer.` is read as well."""
    decoder = Decoder(folders("gpt2"))
    bare = {k.removeprefix("transformer."): v for k, v in decoder.shapes.items()}
    config = json.loads((folders("gpt2") / "config.json").read_text())

    found = find_architecture(config, bare)

    assert found is not None
    assert (found.embedding, found.block(1), found.positions) == ("wte", "h.1", "wpe")
    full = candidates(decoder.shapes, architecture=decoder.architecture)
    assert [x.name for x in candidates(bare, architecture=found)] == [
        x.name.removeprefix("transformer.") for x in full
    ]


@pytest.mark.parametrize("name", NAMES)
def test_plans_take_every_model(name: str, folders: Folders, tmp_path: Path) -> None:
    """What a map says agrees with the shapes that `sources` expects of a model."""
    from lmi_build.decoders.decoder_config import check_config
    from lmi_build.sources.cache import FactsCache
    from lmi_build.sources.local import resolve_folder
    from lmi_build.values.recipe import ModelSpec

    folder = folders(name)

    facts = resolve_folder(
        folder, spec=ModelSpec(source=str(folder)), cache=FactsCache(tmp_path)
    )

    names = {fact.name for fact in facts.tensors}
    found = find_architecture(facts.config, names)
    assert found is not None
    assert not list(check_config(found, facts.config))
    assert not list(check_tensors(found, names))
    assert facts.geometry.num_layers == tiny_architectures.NUM_LAYERS


def test_fused_experts_are_refused(folders: Folders) -> None:
    """One tensor for all experts is refused by name."""
    from lmi_build.errors import Unsupported

    decoder = Decoder(folders("qwen3_moe"))
    name = "model.layers.0.mlp.experts.gate_up_proj"
    names = {*decoder.shapes, name}

    (problem,) = check_tensors(decoder.architecture, names)

    assert (problem.code, name in problem.message) == ("quantize.architecture", True)
    with pytest.raises(Unsupported, match="holds all experts"):
        load_block(
            decoder.architecture, decoder.config, names, 0, lambda _: torch.empty(0)
        )


def test_t5_keeps_tables_and_norms(tmp_path: Path) -> None:
    """Without a map, T5's matrices are taken, its position tables are not."""
    from transformers import T5Config, T5ForConditionalGeneration

    from lmi_build.checkpoint.reader import CheckpointReader

    config = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with CheckpointReader(tmp_path) as reader:
        shapes = {k: (e.dtype, e.shape) for k, e in reader.tensors.items()}

    linears = list(candidates(shapes, architecture=find_architecture({})))

    # Encoder: q, k, v, o, wi, wo; decoder: q, k, v, o twice, wi, wo.
    assert len(linears) == 2 * 6 + 2 * 10
    assert not any("bias" in x.name or "norm" in x.name for x in linears)
    assert {x.block for x in linears} == {
        f"{side}.block.{i}" for side in ("encoder", "decoder") for i in range(2)
    }


def test_every_architecture_is_tested_and_names_its_source() -> None:
    """A map says where it was read, and a tiny model of it stands above."""
    families = {
        "InternLM2ForCausalLM",
        *(tiny_architectures.class_name(name) for name in NAMES if name != "internlm2"),
    }
    for name, arch in architectures().items():
        assert arch.name == name
        assert arch.source.strip()
    assert set(architectures()) == families

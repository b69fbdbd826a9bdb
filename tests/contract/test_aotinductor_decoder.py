"""
The decoder of `aotinductor` computes what transformers computes, not compiled.

Compiling is tried elsewhere; here every architecture and every format is cheap.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

pytest.importorskip("transformers")

from aotinductor_decoders import caches, context, load_decoder, relative
from formats import quantize_folder_as, scheme
from lmi_build.backends.aotinductor.checks import built_architectures
from lmi_build.backends.aotinductor.linears import CodedLinear
from lmi_build.errors import SourceInvalid, Unsupported
from tiny_architectures import MODELS, build, class_name, make

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.backends.aotinductor.decoder import Decoder
    from lmi_build.values.quant import QuantScheme

EXPERTS = {"mixtral", "qwen2_moe", "qwen3_moe"}
DENSE = [name for name in MODELS if name not in EXPERTS]
# Sums of float32 in another order.
ROUNDING = 2e-6
GENERATOR = torch.Generator().manual_seed(1)
IDS = torch.randint(3, 300, (50,), generator=GENERATOR).tolist()


def reference(name: str, folder: Path) -> Any:
    """Transformers' own model in float32; `internlm2` is a llama in other clothes."""
    import transformers

    if name == "internlm2":
        return build(name)
    made = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return made.to(torch.float32).eval()


def in_pieces(decoder: Decoder) -> torch.Tensor:
    """Logits of `IDS`: two pieces of a prompt with padding, then token by token."""
    keys, values = caches(decoder, 1)
    _, first = context(decoder, IDS[:31], keys, values, bucket=40)
    last, second = context(decoder, IDS[31:40], keys, values, start=31, bucket=16)

    assert torch.equal(last[0], second[-1]) or relative(last[0], second[-1]) < ROUNDING
    rows = [first, second]
    with torch.inference_mode():
        for place in range(40, len(IDS)):
            token = torch.tensor([IDS[place]])
            rows.append(decoder.generation(token, torch.tensor([place]), keys, values))
    return torch.cat(rows)


@pytest.mark.parametrize("name", DENSE)
def test_every_architecture_is_transformers_own(tmp_path: Path, name: str) -> None:
    """Pieces of a prompt and steps give the logits of one whole pass."""
    folder = make(name, tmp_path / "model")
    decoder = load_decoder(folder)
    with torch.inference_mode():
        wanted = reference(name, folder)(torch.tensor([IDS])).logits[0]

    assert relative(in_pieces(decoder), wanted) < ROUNDING


def test_what_is_built_is_what_is_tried() -> None:
    """No architecture is offered that no test runs."""
    tried = {class_name(name) for name in DENSE} | {"InternLM2ForCausalLM"}

    assert set(built_architectures()) == tried


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("gemma2", {"final_logit_softcapping": 5.0}, 5.0),
        ("granite", {"logits_scaling": 8.0}, None),
    ],
)
def test_what_follows_the_head_is_computed(
    tmp_path: Path, name: str, options: dict[str, Any], wanted: float | None
) -> None:
    """Logits are capped and scaled as the model says."""
    folder = make(name, tmp_path / "model", **options)
    decoder = load_decoder(folder)
    with torch.inference_mode():
        expected = reference(name, folder)(torch.tensor([IDS])).logits[0]

    found = in_pieces(decoder)
    assert relative(found, expected) < ROUNDING
    assert wanted is None or float(found.abs().max()) <= wanted


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "falcon-alibi"])
def test_slots_do_not_see_one_another(tmp_path: Path, name: str) -> None:
    """Slots at different places, one of them resting, are each as if alone."""
    decoder = load_decoder(make(name, tmp_path / "model"))
    texts = [IDS[:7], IDS[10:40], IDS[3:20]]
    keys, values = caches(decoder, len(texts))
    for slot, ids in enumerate(texts):
        part = slice(slot, slot + 1)
        context(decoder, ids, [k[part] for k in keys], [v[part] for v in values])
    tokens = torch.tensor([11, 12, 13])
    # The second rests: it writes where nobody looks.
    places = torch.tensor([len(texts[0]), decoder.max_seq_len, len(texts[2])])
    with torch.inference_mode():
        first = decoder.generation(tokens, places, keys, values)
        places = torch.tensor([len(texts[0]) + 1, len(texts[1]), len(texts[2]) + 1])
        second = decoder.generation(tokens, places, keys, values)

    for slot, after in ((0, [11, 11]), (1, [12]), (2, [13, 13])):
        alone = caches(decoder, 1)
        whole = texts[slot] + after
        _, wanted = context(decoder, whole, *alone)
        assert relative(second[slot], wanted[-1]) < ROUNDING
        if len(after) > 1:
            assert relative(first[slot], wanted[-2]) < ROUNDING


INT4 = [
    scheme("gptq"),
    scheme("gptq_v2", sym=False),
    scheme("gptq", group_size=-1),
    scheme("gptq", act_order=True),
    scheme("awq"),
    scheme("pack-quantized", sym=False, scale_dtype="bfloat16"),
]
INT8 = [
    scheme("gptq", weight_bits=8),
    scheme("pack-quantized", weight_bits=8, group_size=-1, sym=False),
    scheme("int-quantized"),
    scheme("int-quantized", sym=False, group_size=32),
    scheme("int-quantized", granularity="tensor"),
]


@pytest.mark.parametrize("form", [*INT4, *INT8], ids=str)
def test_every_format_is_taken_exactly(tmp_path: Path, form: QuantScheme) -> None:
    """The decoder is the model with the weights that the checkpoint means."""
    folder = make("llama", tmp_path / "model", attention_bias=False, mlp_bias=False)
    checkpoint = tmp_path / "checkpoint"
    dense = quantize_folder_as(folder, checkpoint, form, ignore=("1.mlp.down_proj",))
    net = reference("llama", folder)
    modules = dict(net.named_modules())
    for name, weight in dense.items():
        modules[name].weight.data = weight
    decoder = load_decoder(checkpoint)
    with torch.inference_mode():
        wanted = net(torch.tensor([IDS])).logits[0]

    assert dense
    assert relative(in_pieces(decoder), wanted) < 1e-5
    held = sum(t.numel() * t.element_size() for t in decoder.state_dict().values())
    whole = sum(p.numel() * 4 for p in net.parameters())
    assert held < whole


def test_weights_stay_as_small_as_they_were(tmp_path: Path) -> None:
    """Nothing of a bfloat16 or 4-bit checkpoint is widened in memory."""
    folder = make("llama", tmp_path / "model", dtype="bfloat16")
    decoder = load_decoder(folder)
    checkpoint = tmp_path / "checkpoint"
    quantize_folder_as(folder, checkpoint, scheme("gptq"))
    packed = load_decoder(checkpoint)

    kinds = {name: tensor.dtype for name, tensor in packed.state_dict().items()}
    assert decoder.embedding.dtype == torch.bfloat16
    codes = [name for name in kinds if name.endswith("code")]
    assert len(codes) == 7 * len(packed.blocks)
    assert {kinds[name] for name in codes} == {torch.uint8}


@pytest.mark.parametrize("activation_scheme", ["dynamic", "static"])
def test_integer_products_are_those_of_the_checkpoint(
    tmp_path: Path, activation_scheme: str
) -> None:
    """W8A8: one row, a few and many give the sums that float64 gives."""
    form = replace(
        scheme("int-quantized"),
        activation_bits=8,
        activation_dtype="int",
        activation_scheme=activation_scheme,
    )
    folder = make("llama", tmp_path / "model", attention_bias=False, mlp_bias=False)
    quantize_folder_as(folder, tmp_path / "checkpoint", form)
    decoder = load_decoder(tmp_path / "checkpoint")
    linear = decoder.blocks[0].get_submodule("linears.mlp__gate_proj")
    assert isinstance(linear, CodedLinear)
    code, scale = linear.code.double(), linear.scale.double()
    assert (linear.step is not None) == (activation_scheme == "static")
    for rows in (1, 5, 40):
        x_RI = torch.randn(rows, code.shape[1], generator=GENERATOR)
        step = x_RI.abs().amax(-1, keepdim=True) / 127.0
        if linear.step is not None:
            step = linear.step
        number = (x_RI / step).round().clamp(-128, 127).double()
        wanted = number @ code.t() * step.double() * scale

        assert relative(linear(x_RI), wanted) < 1e-6


def test_bfloat16_is_near_and_small(tmp_path: Path) -> None:
    """Activations in bfloat16 lose what that type loses; caches are as small."""
    folder = make("llama", tmp_path / "model", dtype="bfloat16")
    exact = in_pieces(load_decoder(folder))
    rough = load_decoder(folder, dtype=torch.bfloat16)

    assert caches(rough, 1)[0][0].dtype == torch.bfloat16
    assert relative(in_pieces(rough), exact) < 0.05


def test_a_head_is_rounded_only_where_it_is_asked_for(tmp_path: Path) -> None:
    """`int8` rounds a tied head, and the embedding stays as it is."""
    folder = make("llama", tmp_path / "model", tie_word_embeddings=True)
    plain = load_decoder(folder)
    rounded = load_decoder(folder, lm_head_dtype="int8")

    assert plain.head is None
    assert torch.equal(plain.embedding, rounded.embedding)
    error = relative(in_pieces(rounded), in_pieces(plain))
    assert 0 < error < 0.02


def test_experts_are_refused_with_what_is_missing(tmp_path: Path) -> None:
    """A model that is not built gives an error, not another model."""
    folder = make("mixtral", tmp_path / "model")

    with pytest.raises(SourceInvalid, match="no tensor"):
        load_decoder(folder)


def test_more_places_than_the_model_has_are_refused(tmp_path: Path) -> None:
    """Learned positions end somewhere; both numbers are named."""
    folder = make("gpt2", tmp_path / "model")

    with pytest.raises(SourceInvalid, match="256 positions, the bounds ask for 257"):
        load_decoder(folder, max_seq_len=257)


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    """Leaving it out would make another model."""
    from safetensors.torch import load_file, save_file

    folder = make("llama", tmp_path / "model")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.extra.weight"] = torch.ones(2, 2)
    save_file(tensors, path, metadata={"format": "pt"})

    with pytest.raises(Unsupported, match="1 tensors have no place"):
        load_decoder(folder)

"""A library's result is believed only as far as it is checked."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmi_build import registry
from lmi_build.catalog.architectures import find_architecture
from lmi_build.checkpoint.formats.codec import encode
from lmi_build.checkpoint.formats.config import quantization_config
from lmi_build.checkpoint.reader import CheckpointReader, byte_view
from lmi_build.checkpoint.writer import tensor_plan, write_checkpoint
from lmi_build.errors import StageFailed
from lmi_build.numerics.rtn import round_to_nearest
from lmi_build.quantizers.external.normalize import normalize
from lmi_build.quantizers.external.readable import (
    config_for,
    make_readable,
    tokenizer_config_for,
)
from lmi_build.quantizers.state import BlockState
from lmi_build.quantizers.targets import select
from lmi_build.values.model import ModelFacts, TensorFact, geometry_from_config
from lmi_build.values.quant import QuantScheme
from lmi_build.values.recipe import QuantSpec
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from lmi_build.checkpoint.ledger import LedgerRow

SCHEME = QuantScheme(
    weight_bits=4,
    weight_dtype="int",
    group_size=32,
    sym=True,
    activation_bits=16,
    packing="gptq",
)
NORM = "model.layers.0.input_layernorm.weight"
LINEAR = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tied head."""
    folder = tmp_path_factory.mktemp("external") / "model"
    make_tiny_model(folder)
    return folder


def linears_of(reader: CheckpointReader, model: Path) -> Any:
    """What a recipe would quantize."""
    config = json.loads((model / "config.json").read_bytes())
    shapes = {name: (e.dtype, e.shape) for name, e in reader.tensors.items()}
    return select(shapes, architecture=find_architecture(config), ignore=("lm_head",))


def library_output(
    model: Path,
    folder: Path,
    change: Callable[[dict[str, Tensor]], None] = lambda _tensors: None,
    **config: Any,
) -> Path:
    """What a sound library would save, and then one thing changed."""
    folder.mkdir()
    with CheckpointReader(model) as reader:
        tensors = {name: reader.read(name) for name in reader.tensors}
        for linear in linears_of(reader, model):
            w_IO = tensors.pop(f"{linear.name}.weight").float().T.contiguous()
            made = round_to_nearest(w_IO, bits=4, group_size=32, sym=True)
            tensors |= encode(linear.name, made, slice(None), SCHEME)
    change(tensors)
    plans = [tensor_plan(name, tensor) for name, tensor in tensors.items()]
    write_checkpoint(folder, plans, lambda name: [byte_view(tensors[name])])
    entry = quantization_config(SCHEME, left=("lm_head",), method="gptq")
    document = {"quantization_config": {**entry, **config}}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def take_over(
    model: Path, native: Path, state: Path, *, method: str = "gptq"
) -> dict[str | None, LedgerRow]:
    """Normalize; returns the ledger's rows of what was written."""
    with torch.inference_mode(), CheckpointReader(model) as reader:
        blocks = BlockState(state, identity="test")
        normalize(
            native,
            reader,
            linears_of(reader, model),
            blocks,
            scheme=SCHEME,
            method=method,
        )
        return {row.source: row for row in blocks.rows()}


def test_sound_result_is_taken_over_with_its_error(model: Path, tmp_path: Path) -> None:
    """Every linear has a row with a small error; nothing else is written anew."""
    rows = take_over(model, library_output(model, tmp_path / "out"), tmp_path / "state")

    assert len(rows) == 14
    assert {row.action for row in rows.values()} == {"quantized"}
    assert all(0 < (row.error or 0) < 0.05 for row in rows.values())


def test_head_that_was_untied_is_dropped(model: Path, tmp_path: Path) -> None:
    """A copy of the embedding under the head's name is no tensor of the result."""

    def untie(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rows = take_over(
        model, library_output(model, tmp_path / "out", untie), tmp_path / "state"
    )

    assert "lm_head.weight" not in rows


def lose_linear(tensors: dict[str, Tensor]) -> None:
    """Leave one linear out."""
    del tensors[f"{LINEAR}.qweight"]


def lose_norm(tensors: dict[str, Tensor]) -> None:
    """Leave another tensor out."""
    del tensors[NORM]


def change_embedding(tensors: dict[str, Tensor]) -> None:
    """Touch what no method touches."""
    tensors["model.embed_tokens.weight"][3, 5] += 1


def change_norm(tensors: dict[str, Tensor]) -> None:
    """Double a norm, as if it had taken up a scale."""
    tensors[NORM] *= 2


def infinite_scale(tensors: dict[str, Tensor]) -> None:
    """Overflow one float16."""
    tensors[f"{LINEAR}.scales"][0, 0] = float("inf")


def shuffled_codes(tensors: dict[str, Tensor]) -> None:
    """Codes of the right shape that mean nothing."""
    words = tensors[f"{LINEAR}.qweight"]
    generator = torch.Generator().manual_seed(0)
    low, high = -(2**31), 2**31 - 1
    words[:] = torch.randint(low, high, words.shape, generator=generator)


def extra_tensor(tensors: dict[str, Tensor]) -> None:
    """A tensor that nobody asked for."""
    tensors["model.layers.0.rotary.inv_freq"] = torch.ones(4)


def loose_head(tensors: dict[str, Tensor]) -> None:
    """A head that is not the embedding."""
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1


def order_of_activation(tensors: dict[str, Tensor]) -> None:
    """Groups of channels that do not lie together, without saying so."""
    tensors[f"{LINEAR}.g_idx"] = tensors[f"{LINEAR}.g_idx"].flip(0).contiguous()


@pytest.mark.parametrize(
    ("change", "method", "word"),
    [
        (lose_linear, "gptq", f"`{LINEAR}` is not quantized"),
        (lose_norm, "gptq", f"`{NORM}` is missing"),
        (change_embedding, "awq", "`model.embed_tokens.weight` changed"),
        (change_norm, "gptq", f"`{NORM}` changed, though `gptq`"),
        (infinite_scale, "gptq", LINEAR),
        (shuffled_codes, "gptq", f"`{LINEAR}` is no approximation"),
        (shuffled_codes, "awq", f"`{LINEAR}` is no approximation"),
        (extra_tensor, "gptq", "inv_freq` was made of nothing"),
        (loose_head, "gptq", "`lm_head.weight` was made of nothing"),
        (order_of_activation, "gptq", LINEAR),
    ],
)
def test_wrong_result_is_refused_by_name(
    model: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], None],
    method: str,
    word: str,
) -> None:
    """Each fault ends with `provider.output` and the tensor's name."""
    native = library_output(model, tmp_path / "out", change)

    with pytest.raises(StageFailed) as failure:
        take_over(model, native, tmp_path / "state", method=method)

    assert failure.value.code == "provider.output"
    assert word in failure.value.message


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"group_size": 64}, "`group_size` is 64, asked for was 32"),
        ({"bits": 8}, "`weight_bits` is 8, asked for was 4"),
        ({"sym": False}, "`sym` is False"),
        ({"checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "exl2"}, "exl2"),
    ],
)
def test_other_scheme_is_refused(
    model: Path, tmp_path: Path, config: dict[str, Any], word: str
) -> None:
    """What the library says it made must be what the recipe asked for."""
    native = library_output(model, tmp_path / "out", **config)

    with pytest.raises(StageFailed) as failure:
        take_over(model, native, tmp_path / "state")

    assert failure.value.code == "provider.output"
    assert word in failure.value.message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling.py", "a/b.pkl"])
def test_programs_and_pickles_are_refused(
    model: Path, tmp_path: Path, name: str
) -> None:
    """Nothing that runs when it is opened gets into a result."""
    native = library_output(model, tmp_path / "out")
    (native / name).parent.mkdir(exist_ok=True)
    (native / name).write_bytes(b"")

    with pytest.raises(StageFailed) as failure:
        take_over(model, native, tmp_path / "state")

    assert failure.value.code == "provider.output"


def test_norm_may_take_up_a_scale_where_the_method_says_so(
    model: Path, tmp_path: Path
) -> None:
    """AWQ moves scales into norms; the ledger tells which."""
    native = library_output(model, tmp_path / "out", change_norm)

    rows = take_over(model, native, tmp_path / "state", method="awq")

    assert rows[NORM].action == "smoothed"


@given(scale=st.floats(0.1, 10), column=st.integers(0, 63))
def test_scales_that_moved_are_not_counted_as_error(scale: float, column: int) -> None:
    """The fit undoes any scale of a row or a column, and nothing else."""
    from lmi_build.quantizers.external.normalize import _fit_scales

    w_OI = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    q_OI = w_OI.clone()
    q_OI[:, column] *= scale
    q_OI[7] /= scale

    fitted_OI = _fit_scales(w_OI, q_OI)

    left = (fitted_OI - q_OI).square().sum() / q_OI.square().sum()
    assert float(left) < 1e-3


def test_config_in_older_spelling() -> None:
    """Rotary settings and dtype get the names of transformers 4; release 5 keeps."""
    new = {
        "dtype": "bfloat16",
        "auto_map": {"AutoModel": "code.Model"},
        "rope_parameters": {
            "rope_theta": 5e5,
            "rope_type": "llama3",
            "factor": 8.0,
            "partial_rotary_factor": 0.5,
        },
    }

    old = config_for(new, major=4)
    same = config_for(new, major=5)

    assert old == {
        "torch_dtype": "bfloat16",
        "rope_theta": 5e5,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
    }
    assert same == {k: v for k, v in new.items() if k != "auto_map"}


def test_plain_rope_has_no_scaling() -> None:
    """`default` is no scaling; an older release would not know the word."""
    config = {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}

    assert config_for(config, major=4) == {"rope_theta": 1e4}


def test_tokenizer_class_of_a_newer_release_is_replaced() -> None:
    """Any class becomes the plain one; special tokens stay."""
    told = {"tokenizer_class": "TokenizersBackend", "bos_token": "<s>", "extra": [1]}

    assert tokenizer_config_for(told) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
    }


def test_readable_model_links_weights_and_changes_nothing(
    model: Path, tmp_path: Path
) -> None:
    """Weights are links to the input, whose files stay as they were."""
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    folder = tmp_path / "readable"
    folder.mkdir()

    make_readable(model, folder, major=4)

    assert (folder / "model.safetensors").resolve() == model / "model.safetensors"
    assert "torch_dtype" in json.loads((folder / "config.json").read_bytes())
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def facts(model: Path) -> ModelFacts:
    """The tiny model pinned down."""
    config = json.loads((model / "config.json").read_bytes())
    with CheckpointReader(model) as reader:
        tensors = tuple(
            TensorFact(name=n, dtype=e.dtype, shape=e.shape, file="model.safetensors")
            for n, e in reader.tensors.items()
        )
    return ModelFacts(
        kind="folder",
        source="model",
        location=str(model),
        revision="",
        geometry=geometry_from_config(config),
        config=config,
        files=(),
        tensors=tensors,
        dtype="bfloat16",
    )


GPTQ = QuantSpec(method="gptq", bits=4, group_size=32)
AWQ = QuantSpec(method="awq", bits=4, group_size=32, sym=False)


@pytest.mark.parametrize(
    ("provider", "spec", "path"),
    [
        ("llmcompressor", replace(GPTQ, bits=3), "quantize.bits"),
        ("llmcompressor", replace(GPTQ, format="awq"), "quantize.format"),
        (
            "llmcompressor",
            QuantSpec(method="smoothquant"),
            "quantize.smoothing_strength",
        ),
        ("llmcompressor", replace(GPTQ, kv_cache_dtype="fp8"), "quantize.kv_cache"),
        ("gptqmodel", replace(GPTQ, group_size=48), "quantize.group_size"),
        ("gptqmodel", replace(GPTQ, lm_head=True), "quantize.lm_head"),
        ("llmcompressor", replace(GPTQ, lm_head=True), "quantize.lm_head"),
        ("auto-gptq", replace(GPTQ, lm_head=True), "quantize.lm_head"),
        ("autoawq", replace(AWQ, sym=True), "quantize.sym"),
        ("autoawq", replace(AWQ, bits=8), "quantize.bits"),
        ("autoawq", replace(AWQ, then_gptq=True), "quantize.then_gptq"),
        ("autoawq", AWQ, "quantize.clip"),
        ("autoawq", replace(AWQ, ignore=("*.v_proj",)), "quantize.ignore"),
        ("auto-gptq", replace(GPTQ, ignore=("*.v_proj",)), "quantize.ignore"),
    ],
)
def test_what_a_library_cannot_do_is_said_at_its_key(
    model: Path, provider: str, spec: QuantSpec, path: str
) -> None:
    """A wish that a library cannot meet is refused by the plan, with a way out."""
    quantizer = registry.quantizer(provider)

    problems = list(
        quantizer.check(recipe_of(replace(spec, provider=provider)), facts(model))
    )

    assert any(problem.path.startswith(path) for problem in problems)
    assert all(problem.hint for problem in problems)


def recipe_of(spec: QuantSpec) -> Any:
    """As much of a recipe as a quantizer looks at."""
    from types import SimpleNamespace

    return SimpleNamespace(quantize=spec)


@pytest.mark.parametrize(
    ("provider", "spec"),
    [
        ("llmcompressor", GPTQ),
        ("llmcompressor", replace(AWQ, then_gptq=True)),
        ("gptqmodel", replace(GPTQ, ignore=("lm_head", "*.v_proj"))),
        ("autoawq", replace(AWQ, clip=False)),
        ("auto-gptq", GPTQ),
    ],
)
def test_lowered_parameters_are_whole(
    model: Path, provider: str, spec: QuantSpec
) -> None:
    """Everything is JSON with a canonical form; calibration and scheme stand in it."""
    from lmi_build.digest import digest_json

    quantizer = registry.quantizer(provider)
    params = quantizer.lower(replace(spec, provider=provider), facts(model))

    assert digest_json(params).startswith("sha256:")
    assert json.loads(json.dumps(params)) == params
    assert {"native", "driver", "scheme", "calibration", "ignore"} <= set(params)
    assert list(quantizer.check(recipe_of(spec), facts(model))) == []
    assert quantizer.estimate(spec, facts(model)).disk_bytes > 0

"""A quantized head: what is written, what it is worth, and who computes with it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

from aotinductor_decoders import caches as empty_caches
from aotinductor_decoders import context, load_decoder, relative
from bench.folder_facts import folder_facts
from lmi_build.checkpoint.formats.convert import convert
from lmi_build.checkpoint.formats.dequantized import DequantizedReader
from lmi_build.checkpoint.layers import layers_of
from lmi_build.checkpoint.ledger import check_total, read_ledger
from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.errors import LmiBuildError
from lmi_build.events import StageProgress
from lmi_build.quantizers import builtin_checks, builtin_worker, head
from lmi_build.quantizers.builtin import PROVIDER
from lmi_build.quantizers.calibration_windows import read_windows
from lmi_build.values.recipe import CalibrationSpec, QuantSpec
from stage_jobs import quantize, quantize_job
from tiny_architectures import make

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from lmi_build.events import Event

GPTQ = QuantSpec(
    method="gptq",
    bits=4,
    group_size=32,
    sym=False,
    lm_head=True,
    calibration=CalibrationSpec(num_samples=6, max_seq_len=96),
)
RTN = QuantSpec(method="rtn", bits=4, group_size=32, lm_head=True)
IDS = torch.randint(3, 300, (40,), generator=torch.Generator().manual_seed(1)).tolist()
# Sums of float32 in another order.
ROUNDING = 2e-6
# Tied and not, a layer norm with a bias, [in, out] weights, a head's bias, 1 + weight.
NAMES = ["llama", "gemma2", "gpt2", "phi"]


def tensors(folder: Path) -> Mapping[str, Tensor]:
    """Every tensor of a folder."""
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def config(folder: Path) -> dict[str, Any]:
    """Its `config.json`."""
    document: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return document


def dequantized(checkpoint: Path, folder: Path) -> Path:
    """The values that a checkpoint means, as a float model."""
    folder.mkdir(parents=True)
    with DequantizedReader(checkpoint) as reader:
        values = {name: reader.read(name).contiguous() for name in reader.tensors}
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    document = config(checkpoint)
    del document["quantization_config"]
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def model_of(folder: Path) -> Any:
    """Transformers' model in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(folder: Path) -> Tensor:
    """What transformers' model says to `IDS`."""
    with torch.inference_mode():
        found: Tensor = model_of(folder)(torch.tensor([IDS])).logits[0]
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("spec", [GPTQ, RTN], ids=lambda spec: spec.method)
@pytest.mark.parametrize("name", NAMES)
def test_the_head_and_nothing_else_changes(
    name: str, spec: QuantSpec, tmp_path: Path, *, tied: bool
) -> None:
    """Blocks and embedding are those of a build without, and readers are told."""
    model = make(name, tmp_path / "model", tie_word_embeddings=tied)
    plain = quantize(tmp_path / "plain", model, replace(spec, lm_head=False))
    out = quantize(tmp_path / "head", model, spec)
    before, after = tensors(plain), tensors(out)
    own = "lm_head.weight" in before

    made = {f"lm_head.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")}
    assert set(after) == (set(before) - {"lm_head.weight"}) | made
    assert all(torch.equal(before[x], after[x]) for x in set(before) & set(after))
    assert own is not tied
    assert config(out)["tie_word_embeddings"] is False
    assert config(out)["quantization_config"]["lm_head"] is True
    assert config(plain)["quantization_config"]["lm_head"] is False
    rows = read_ledger(out)
    assert sorted(str(row.source) for row in rows) == sorted(tensors(model))
    assert "lm_head" in {row.module for row in rows if row.action == "quantized"}
    told = layers_of(rows)
    (layer,) = [layer for layer in told.layers if layer.name == "lm_head"]
    assert layer.bits == 4
    assert layer.num_bytes == sum(after[x].nbytes for x in made)
    assert sum(item.num_bytes for item in told.classes) == sum(
        value.nbytes for value in after.values()
    )
    other = tmp_path / "other"
    convert(out, other, to="compressed-tensors")
    with CheckpointReader(model) as source, CheckpointReader(other) as result:
        check_total(read_ledger(other), source.tensors, result.tensors)
    weights = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    assert PROVIDER.estimate(spec, folder_facts(model)).disk_bytes == weights


@pytest.mark.parametrize("name", NAMES)
def test_the_error_told_is_that_of_its_outputs(name: str, tmp_path: Path) -> None:
    """Hidden states of the quantized model, by transformers, give the same number."""
    model = make(name, tmp_path / "model")
    out = quantize(tmp_path / "head", model, GPTQ)
    (row,) = [
        row
        for row in read_ledger(out)
        if any(item.name == "lm_head.qweight" for item in row.results)
    ]
    float_model = dequantized(out, tmp_path / "float")
    net, told = model_of(float_model), row.error
    weight = model_of(model).lm_head.weight
    job = quantize_job(tmp_path / "again", model, GPTQ)
    windows = torch.tensor(read_windows(job, lambda _: None))
    with torch.inference_mode():
        x_TI = net.base_model(windows).last_hidden_state.flatten(0, 1)
        miss = (x_TI @ (net.lm_head.weight - weight).T).square().sum()
        power = (x_TI @ weight.T).square().sum()

    assert row.tokens == len(x_TI)
    assert told == pytest.approx(float(miss / power), rel=0.02)
    rounded = tensors(quantize(tmp_path / "rtn", model, replace(RTN, sym=False)))
    assert not torch.equal(rounded["lm_head.qweight"], tensors(out)["lm_head.qweight"])


@pytest.mark.parametrize("spec", [GPTQ, RTN], ids=lambda spec: spec.method)
def test_pieces_of_a_head_are_the_whole(
    spec: QuantSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many words are rounded at once changes no byte."""
    model = make("llama", tmp_path / "model")
    whole = tensors(quantize(tmp_path / "whole", model, spec))
    monkeypatch.setattr(head, "HEAD_OUTPUTS", 100)
    pieces = tensors(quantize(tmp_path / "pieces", model, spec))

    assert all(torch.equal(value, pieces[name]) for name, value in whole.items())


def test_a_walk_that_was_cut_off_before_the_head_goes_on(tmp_path: Path) -> None:
    """The last block's record has what the head reads."""
    model = make("llama", tmp_path / "model")
    whole = tensors(quantize(tmp_path / "whole", model, GPTQ))
    blocks = config(model)["num_hidden_layers"]

    class Cut(Exception):
        """Stands for a process that is killed."""

    def cut(event: Event) -> None:
        if isinstance(event, StageProgress) and event.done == blocks:
            assert event.total == blocks + 1
            raise Cut

    with pytest.raises(Cut):
        quantize(tmp_path / "cut", model, GPTQ, emit=cut)
    job = quantize_job(tmp_path / "next", model, GPTQ)
    job.state.parent.mkdir(exist_ok=True)
    (tmp_path / "cut" / "state").rename(job.state)
    events: list[Event] = []
    builtin_worker.run(job, events.append)
    done = [event.done for event in events if isinstance(event, StageProgress)]

    assert done == [blocks + 1]
    again = tensors(job.out)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.parametrize("name", NAMES)
def test_aotinductor_computes_with_it(name: str, tmp_path: Path) -> None:
    """The decoder is the model with the values that the checkpoint means."""
    model = make(name, tmp_path / "model")
    out = quantize(tmp_path / "head", model, GPTQ)
    decoder = load_decoder(out)
    _, found = context(decoder, IDS, *empty_caches(decoder, 1))

    wanted = logits(dequantized(out, tmp_path / "float"))
    assert relative(found, wanted) < ROUNDING


@pytest.mark.parametrize("spec", [GPTQ, RTN], ids=lambda spec: spec.method)
def test_onnxruntime_computes_with_it(spec: QuantSpec, tmp_path: Path) -> None:
    """So does its engine, where activations stay in float."""
    pytest.importorskip("onnxruntime_genai")
    from onnxruntime_engines import (
        EXACT,
        compile_engine,
        load_engine,
        make_model,
        relative_error,
    )

    model = make_model(tmp_path / "model", "llama", {"tie_word_embeddings": True})
    checkpoint = quantize(tmp_path / "head", model, spec).rename(
        tmp_path / "checkpoint"
    )
    engine, events = compile_engine(checkpoint, tmp_path / "job", **EXACT)
    net = model_of(dequantized(checkpoint, tmp_path / "float"))

    assert relative_error(net, load_engine(engine), IDS[:13]) < 5e-6
    assert not [event for event in events if "head" in str(event)]


@pytest.mark.parametrize(
    ("name", "spec", "hint"),
    [
        ("gpt_neox", GPTQ, "use `lm_head: false`"),
        ("internlm2", RTN, "use `lm_head: false`"),
    ],
)
def test_heads_of_other_names_are_refused(
    name: str, spec: QuantSpec, hint: str, tmp_path: Path
) -> None:
    """Readers look for `lm_head`."""
    facts = folder_facts(make(name, tmp_path / "model"))
    problems = list(
        builtin_checks.check(
            spec, facts, PROVIDER.scheme(spec, facts), calibrates=False
        )
    )

    assert [(x.code, x.path, x.hint) for x in problems] == [
        ("quantize.head", "quantize.lm_head", hint)
    ]


def test_a_head_that_is_no_number_is_told(tmp_path: Path) -> None:
    """Before anything is computed where it is tied, and at its turn where not."""
    model = make("llama", tmp_path / "model", tie_word_embeddings=False)
    found = dict(tensors(model))
    said = r"`lm_head\.weight` has 1 of"
    found["lm_head.weight"][5, 3] = float("nan")
    save_file(found, model / "model.safetensors", metadata={"format": "pt"})
    for spec in (GPTQ, RTN):
        with pytest.raises(LmiBuildError, match=said) as caught:
            quantize(tmp_path / spec.method, model, spec)
        assert caught.value.code == "quantize.weight-not-finite"

"""Converting a checkpoint changes no number, or is refused."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from formats import (
    Shape,
    folder_bytes,
    random_codes,
    same_codes,
    scheme,
    write_folder,
)
from lmi_build.checkpoint.formats.codec import Codes, decode
from lmi_build.checkpoint.formats.config_reader import read_scheme
from lmi_build.checkpoint.formats.convert import convert
from lmi_build.checkpoint.ledger import (
    LedgerResult,
    LedgerRow,
    check_total,
    copied,
    read_ledger,
    write_ledger,
)
from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.cli.main import run
from lmi_build.errors import LmiBuildError, SourceInvalid, Unsupported, UsageInvalid
from lmi_build.events import StageProgress

if TYPE_CHECKING:
    from lmi_build.events import Event
    from lmi_build.values.quant import QuantScheme

TARGETS = ("gptq", "gptq_v2", "awq", "compressed-tensors")
NAMES = ("model.layers.0.q", "model.layers.0.k")
SHAPES = (Shape(num_outputs=32), Shape(num_outputs=64))


def linears_of(form: QuantScheme, *, seed: int = 0, low: int = 1) -> dict[str, Codes]:
    """Two layers in one scheme."""
    return {
        name: random_codes(shape, form, seed=seed + at, zeros_from=low)
        for at, (name, shape) in enumerate(zip(NAMES, SHAPES, strict=True))
    }


def read_all(folder: Path) -> tuple[QuantScheme, dict[str, Codes]]:
    """Scheme and layers of a folder, as its own config.json says."""
    config = json.loads((folder / "config.json").read_text())
    form = read_scheme(config["quantization_config"])
    tensors = load_file(folder / "model.safetensors")
    return form, {name: decode(tensors, name, form) for name in NAMES}


@st.composite
def weight_only(draw: st.DrawFn) -> QuantScheme:
    """Schemes that more than one format knows."""
    packing = draw(st.sampled_from(["gptq", "gptq_v2", "awq", "pack-quantized"]))
    bits = 4 if packing == "awq" else draw(st.sampled_from([4, 8]))
    group_size = draw(st.sampled_from([-1, 16, 32]))
    return scheme(
        packing,
        weight_bits=bits,
        group_size=group_size,
        sym=packing != "awq" and draw(st.booleans()),
        act_order="gptq" in packing and group_size > 0 and draw(st.booleans()),
    )


@given(weight_only(), st.sampled_from(TARGETS), st.integers(0, 100), st.integers(0, 1))
@settings(max_examples=40, deadline=None)
def test_there_and_back_is_where_it_was(
    form: QuantScheme, to: str, seed: int, low: int
) -> None:
    """What is not refused keeps every number, and comes back byte for byte."""
    low = 1 if form.packing == "gptq" else low
    linears = linears_of(form, seed=seed, low=low)
    with tempfile.TemporaryDirectory() as place:
        source = write_folder(Path(place) / "source", linears, form)
        there, back = Path(place) / "there", Path(place) / "back"
        refused = None
        try:
            convert(source, there, to=to)
        except Unsupported as error:
            refused = error.code
        if refused is not None:
            assert refused in {"convert.same", "convert.lossy"}
            assert sorted(p.name for p in Path(place).iterdir()) == ["source"]
            return
        found = read_all(there)[1]
        family = "compressed-tensors"
        convert(there, back, to=form.packing if form.packing in TARGETS else family)

        assert all(same_codes(found[name], linears[name]) for name in NAMES)
        assert folder_bytes(back) == folder_bytes(source)
        assert read_all(back)[0] == read_all(source)[0]


@pytest.mark.parametrize("to", TARGETS[1:])
def test_other_files_come_along(tmp_path: Path, to: str) -> None:
    """The tokenizer is copied; what repeats the old configuration is not."""
    form = scheme("gptq")
    source = write_folder(tmp_path / "source", linears_of(form), form)
    (source / "hf_quant_config.json").write_text('{"quantization": {}}')
    done = convert(source, tmp_path / "out", to=to)

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    entry = config["quantization_config"]
    kept = entry.get("ignore") or entry.get("modules_to_not_convert")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert config["model_type"] == "llama"
    assert "model.layers.0.kept" in kept
    assert (done.num_linears, done.num_copied) == (2, 5)
    assert {k: v for k, v in folder_bytes(tmp_path / "out").items() if "norm" in k} == {
        k: v for k, v in folder_bytes(source).items() if "norm" in k
    }


def test_a_symmetric_grid_stays_one_through_awq(tmp_path: Path) -> None:
    """AutoAWQ's form has no word for it; the zero points tell."""
    form = scheme("gptq")
    source = write_folder(tmp_path / "source", linears_of(form), form)
    convert(source, tmp_path / "awq", to="awq")
    convert(tmp_path / "awq", tmp_path / "dense", to="compressed-tensors")

    assert read_all(tmp_path / "awq")[0].sym is False
    assert read_all(tmp_path / "dense")[0].sym is True


def test_activation_order_of_old_releases_is_kept(tmp_path: Path) -> None:
    """compressed-tensors before 0.19 had a group index, which AutoGPTQ has as well."""
    form = scheme("pack-quantized", act_order=True)
    linears = linears_of(form)
    source = write_folder(tmp_path / "source", linears, form)
    convert(source, tmp_path / "out", to="gptq")

    found, layers = read_all(tmp_path / "out")
    assert found.act_order
    assert all(same_codes(layers[name], linears[name]) for name in NAMES)


def test_scales_keep_their_digits(tmp_path: Path) -> None:
    """float16 scales stay float16 in compressed-tensors; bfloat16 ones may go back."""
    form = scheme("pack-quantized", scale_dtype="bfloat16")
    linears = linears_of(form)
    for codes in linears.values():
        codes.scale_GO.clamp_(2**-14)
    source = write_folder(tmp_path / "source", linears, form)
    convert(source, tmp_path / "out", to="gptq")

    found = read_all(tmp_path / "out")[1]
    assert all(same_codes(found[name], linears[name]) for name in NAMES)


W8A8 = scheme(
    "int-quantized",
    activation_bits=8,
    activation_dtype="int",
    activation_scheme="dynamic",
)
TINY = torch.full((2, 32), 2.0**-30)


@pytest.mark.parametrize(
    ("form", "to", "reason"),
    [
        (scheme("gptq", weight_bits=3), "awq", "3-bit weights"),
        (scheme("gptq", weight_bits=8), "awq", "8-bit weights"),
        (scheme("gptq", weight_bits=2), "compressed-tensors", "2-bit weights"),
        (scheme("gptq", act_order=True), "awq", "activation order"),
        (scheme("gptq", act_order=True), "compressed-tensors", "activation order"),
        (scheme("gptq_v2", sym=False), "gptq", "zero points are 0"),
        (scheme("float-quantized"), "gptq", "no fp8 weights"),
        (W8A8, "gptq", "no place for 8-bit activations"),
        (scheme("int-quantized", granularity="tensor"), "gptq", "whole matrix"),
        (scheme("pack-quantized", kv_cache_dtype="fp8"), "awq", "key-value cache"),
        (scheme("pack-quantized", scale_dtype="float32"), "gptq_v2", "not float16"),
    ],
    ids=str,
)
def test_what_would_be_lost_is_said(
    tmp_path: Path, form: QuantScheme, to: str, reason: str
) -> None:
    """The reason is named, and nothing is left behind."""
    linears = linears_of(form, low=0)
    if not form.sym:
        linears[NAMES[0]].zero_GO[0, 0] = 0
    source = write_folder(tmp_path / "source", linears, form)
    with pytest.raises(Unsupported, match=reason) as caught:
        convert(source, tmp_path / "out", to=to)

    assert caught.value.code == "convert.lossy"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_first_version_with_wrapped_zero_points_is_refused(tmp_path: Path) -> None:
    """Stored 15 is 16 to some readers and 0 to others."""
    form = scheme("gptq_v2", sym=False)
    linears = linears_of(form)
    linears[NAMES[1]].zero_GO[0, 3] = 15
    source = write_folder(tmp_path / "source", linears, form, checkpoint_format="gptq")
    with pytest.raises(Unsupported, match="the largest number"):
        convert(source, tmp_path / "out", to="compressed-tensors")


def test_widths_that_do_not_fill_words_are_refused(tmp_path: Path) -> None:
    """compressed-tensors may pad, AutoGPTQ may not."""
    form = scheme("pack-quantized", group_size=-1)
    linears = {"m": random_codes(Shape(num_outputs=12), form)}
    source = write_folder(tmp_path / "source", linears, form)
    with pytest.raises(Unsupported, match="12 output channels"):
        convert(source, tmp_path / "out", to="gptq")


def _folder(tmp_path: Path) -> Path:
    form = scheme("gptq")
    return write_folder(tmp_path / "source", linears_of(form), form)


def _float(source: Path) -> None:
    (source / "config.json").write_text('{"model_type": "llama"}')


def _cut(source: Path) -> None:
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def _other(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"]["bits"] = 8
    (source / "config.json").write_text(json.dumps(config))


def _no_layers(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 32}}},
    }
    (source / "config.json").write_text(json.dumps(config))


def _ledger(source: Path) -> None:
    (source / "ledger.json").write_text("[]")


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (_float, "convert.config"),
        (lambda source: (source / "config.json").unlink(), "convert.config"),
        (lambda source: (source / "config.json").write_text("{"), "convert.config"),
        (_cut, "checkpoint.truncated"),
        (_other, "checkpoint.format"),
        (_no_layers, "checkpoint.format"),
        (_ledger, "convert.ledger"),
    ],
    ids=["float", "no config", "no JSON", "cut", "other bits", "no layer", "ledger"],
)
def test_a_broken_checkpoint_leaves_nothing(
    tmp_path: Path, harm: Any, code: str
) -> None:
    """Whatever is wrong with the source, the target does not exist afterwards."""
    source = _folder(tmp_path)
    harm(source)
    with pytest.raises((SourceInvalid, Unsupported)) as caught:
        convert(source, tmp_path / "out", to="compressed-tensors")

    assert caught.value.code == code
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_target_is_never_overwritten(tmp_path: Path) -> None:
    """A folder with anything in it is refused; an empty one is taken."""
    source = _folder(tmp_path)
    full, empty = tmp_path / "full", tmp_path / "empty"
    full.mkdir()
    (full / "mine").write_text("mine")
    empty.mkdir()
    for out in (full, full / "mine", source / "inside"):
        with pytest.raises(UsageInvalid) as caught:
            convert(source, out, to="awq")
        assert caught.value.code == "convert.output"
    with pytest.raises(UsageInvalid) as caught:
        convert(source, tmp_path / "x", to="marlin")

    convert(source, empty, to="awq")

    assert caught.value.code == "convert.format"
    assert (full / "mine").read_text() == "mine"
    assert (empty / "model.safetensors").is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    source = _folder(tmp_path)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(LmiBuildError) as caught:
        convert(source, locked / "out", to="awq")

    assert caught.value.code == "convert.write"


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    """A parent that is a file is told as what it is."""
    source = _folder(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(LmiBuildError) as caught:
        convert(source, tmp_path / "file" / "out", to="awq")

    assert caught.value.code == "convert.write"


def test_the_ledger_follows_the_tensors(tmp_path: Path) -> None:
    """Rows keep source and error and name what lies on disk now."""
    source = _folder(tmp_path)
    rows = []
    with CheckpointReader(source) as reader:
        tensors = reader.tensors
    for name in NAMES:
        results = tuple(
            LedgerResult(name=n, dtype=e.dtype, shape=e.shape)
            for n, e in tensors.items()
            if n.startswith(f"{name}.") and not n.endswith("bias")
        )
        rows.append(
            LedgerRow(
                source=f"{name}.weight",
                dtype="bfloat16",
                shape=(1, 1),
                action="quantized",
                results=results,
                error=0.5,
            )
        )
    plain = [e for n, e in tensors.items() if n.endswith((".bias", ".weight"))]
    rows += [copied(entry) for entry in plain]
    write_ledger(source, rows)

    convert(source, tmp_path / "out", to="compressed-tensors")

    moved = read_ledger(tmp_path / "out")
    wholes = {row.source: replace(plain[0], dtype=row.dtype) for row in rows}
    wholes |= {entry.name: entry for entry in plain}
    for row in rows[: len(NAMES)]:
        wholes[row.source] = replace(plain[0], dtype=row.dtype, shape=row.shape)
    with CheckpointReader(tmp_path / "out") as reader:
        check_total(moved, wholes, reader.tensors)  # type: ignore[arg-type]
    assert [row.error for row in moved if row.action == "quantized"] == [0.5, 0.5]


def test_progress_names_both_passes(tmp_path: Path) -> None:
    """Each layer is checked once and written once or more, never past the total."""
    events: list[Event] = []
    convert(_folder(tmp_path), tmp_path / "out", to="awq", emit=events.append)
    steps = [(e.unit, e.done, e.total) for e in events if isinstance(e, StageProgress)]

    assert steps[:2] == [("layers checked", 1, 2), ("layers checked", 2, 2)]
    assert {step[0] for step in steps[2:]} == {"layers written"}
    assert steps[-1][1:] == (2, 2)


def test_the_command_says_what_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text for people, a document for programs, exit status by error."""
    source, out = str(_folder(tmp_path)), str(tmp_path / "out")

    assert run(["convert", source, "--to", "awq", "--out", out]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == out
    assert "2 layers from `gptq` to `awq`, bit for bit; 5 tensors copied" in shown.err

    assert run(["convert", source, "--to", "awq", "--out", out]) == 2
    assert "error[convert.output]" in capsys.readouterr().err
    status = run(
        ["convert", out, "--to", "gptq", "--out", f"{out}2", "--output", "json", "-q"]
    )
    document = json.loads(capsys.readouterr().out)
    assert status == 0
    assert (document["layers"], document["target"]["packing"]) == (2, "gptq")
    assert run(["convert", out, "--to", "awq", "--out", f"{out}3"]) == 3

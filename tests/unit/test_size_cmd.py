"""`lmi-build size` as people and programs see it."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

import tiny_architectures
from lmi_build.catalog.runtimes import runtimes
from lmi_build.cli.main import run

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """\
schema: lmi-build/v1
name: tiny
model:
  source: ./model
quantize:
  method: gptq
  bits: 4
  group_size: 32
bounds:
  max_input_len: 128
  max_output_len: 64
  max_batch_size: 8
compile:
  backend: onnxruntime
"""
QUANTIZE = """\
quantize:
  method: gptq
  bits: 4
  group_size: 32
"""
NEURON = """\
  backend: neuronx
  target: ml.inf2.8xlarge
  release: djl-neuronx-0.30.0
  tensor_parallel_size: 2
"""
MODEL = ["--max-input-len", "128", "--max-output-len", "64", "--max-batch-size", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe beside a tiny Llama."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("size")
    tiny_architectures.make("llama", root / "model", dtype="bfloat16")
    (root / "recipe.yaml").write_text(RECIPE, "utf-8")
    return root


def size(
    folder: Path, *arguments: str, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Status and both outputs of a command."""
    cache = ["--cache-dir", str(folder / "cache"), "--offline"]
    status = run(["size", *arguments, *cache])
    told = capsys.readouterr()
    return status, told.out, told.err


def document(
    folder: Path, *arguments: str, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """The only report of a command that must end well."""
    status, out, err = size(folder, *arguments, "--output", "json", capsys=capsys)
    assert status == 0, err
    (report,) = json.loads(out)
    return dict(report)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_recipe_is_sized_with_what_building_takes(
    folder: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    """Without a known memory there is no verdict but the lines."""
    words = [str(folder / "recipe.yaml"), "--set", f"compile.target={target}"]
    found = document(folder, *words, capsys=capsys)

    assert found["verdict"] == "unproven"
    assert found["capacity_low_bytes"] is None
    assert found["build"]["ram_bytes"] > 0
    lines = found["lines"]
    assert sum(line["high_bytes"] for line in lines) == found["total_high_bytes"]
    assert sum(line["low_bytes"] for line in lines) == found["total_low_bytes"]


def test_what_cannot_fit_points_at_the_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` ends with 4 and names a batch that fits; without it nothing fails."""
    recipe = folder / "large.yaml"
    recipe.write_text(RECIPE.replace("size: 8", "size: 60000"), "utf-8")
    told = [str(recipe), "--memory", "4GiB"]
    status, out, _ = size(folder, *told, capsys=capsys)
    refused, _, err = size(folder, *told, "--check", capsys=capsys)

    assert (status, refused) == (0, 4)
    assert "verdict: cannot fit" in out
    assert "size.does-not-fit" in err
    assert "large.yaml:12:19" in err
    assert "lower `bounds.max_batch_size` from 60000 to " in err


def test_a_model_without_a_recipe_is_sized_for_an_instance(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verdict is that of the instance's device, the answer that of its batch."""
    told = ["--model", str(folder / "model"), *MODEL, "--target", "g5.xlarge"]
    found = document(folder, *told, "--largest", "batch", capsys=capsys)

    assert found["verdict"] == "fits"
    assert found["instance"] == "ml.g5.xlarge"
    assert found["largest"]["certain"] >= 8
    assert found["changes"] == []


def test_a_folder_without_a_tokenizer_is_sized_and_priced(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of it is counted; a build of it is still refused."""
    shutil.copytree(folder / "model", tmp_path / "model")
    kept = {"config.json", "model.safetensors"}
    for path in (tmp_path / "model").iterdir():
        if path.name not in kept:
            path.unlink()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    target = ["--target", "ml.g5.xlarge"]

    assert run(["size", str(recipe)]) == 0
    assert run(["size", "--model", str(tmp_path / "model"), *MODEL, *target]) == 0
    assert run(["cost", str(recipe), "--instance", "ml.g5.xlarge"]) in {0, 2, 3}
    assert "source.no-tokenizer" not in capsys.readouterr().err
    assert run(["plan", str(recipe)]) != 0
    assert "source.no-tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("runtime", sorted(runtimes()))
def test_every_runtime_has_its_lines(
    runtime: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four bits take less than sixteen, whoever serves them."""
    told = ["--model", str(folder / "model"), *MODEL, "--runtime", runtime]
    whole = document(folder, *told, capsys=capsys)
    few = document(
        folder, *told, "--method", "gptq", "--group-size", "32", capsys=capsys
    )

    assert few["checkpoint_bytes"] < whole["checkpoint_bytes"]
    assert few["total_high_bytes"] < whole["total_high_bytes"]


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        ([], "size.no-subject", 2),
        (["--model", "MODEL"], "size.no-bounds", 2),
        (["--model", "MODEL", *MODEL, "--target", "g5.tiny"], "size.unknown-target", 2),
        (["--model", "MODEL", *MODEL, "--runtime", "x"], "size.unknown-runtime", 2),
        (
            ["--model", "MODEL", *MODEL, "--tensor-parallel-size", "2"],
            "size.too-few-devices",
            2,
        ),
        (
            ["--model", "MODEL", *MODEL, "--target", "cpu", "--largest", "batch"],
            "size.no-capacity",
            2,
        ),
        (["--model", "./nowhere", *MODEL], "source.not-found", 1),
        (
            ["--model", "MODEL", *MODEL, "--memory", "1MiB", "--check"],
            "size.does-not-fit",
            4,
        ),
    ],
)
def test_bad_input_is_told_by_its_code(
    arguments: list[str],
    code: str,
    status: int,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each fault has a code, a status and a hint."""
    told = [str(folder / "model") if word == "MODEL" else word for word in arguments]
    found, _, err = size(folder, *told, capsys=capsys)

    assert found == status
    assert f"error[{code}]" in err


def test_an_unknown_architecture_is_never_said_to_fit(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its numbers are shown, and why they prove nothing."""
    import shutil

    model = shutil.copytree(folder / "model", tmp_path / "model")
    config = json.loads((model / "config.json").read_text("utf-8"))
    config["architectures"] = ["MadeUpForCausalLM"]
    (model / "config.json").write_text(json.dumps(config), "utf-8")
    found = document(folder, "--model", str(model), *MODEL, capsys=capsys)

    assert found["verdict"] == "unproven"
    assert "MadeUpForCausalLM" in found["unknown"][0]
    assert found["margin_worst_bytes"] > 0


def test_a_neuron_core_is_counted_by_its_backend(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights and cache are those of the backend, with its padding and copies."""
    from lmi_build import api
    from lmi_build.backends.neuronx.loader_tnx import tnx_request
    from lmi_build.backends.neuronx.loaders import Request
    from lmi_build.backends.neuronx.target import find_target
    from lmi_build.backends.neuronx.tnx_request import tnx_core_memory
    from lmi_build.values.settings import Settings

    path = folder / "neuron.yaml"
    text = RECIPE.replace("  backend: onnxruntime\n", NEURON)
    path.write_text(text.replace(QUANTIZE, ""), "utf-8")
    found = document(folder, str(path), "--largest", "batch", capsys=capsys)
    (recipe,) = api.load_recipe(path)
    facts = api.resolve([recipe], Settings(cache_dir=folder / "cache"))[recipe.name]
    target = find_target(recipe.compile, encoder=False)
    core = tnx_core_memory(
        tnx_request(Request(recipe=recipe, model=facts, target=target))
    )
    lines = {line["name"]: line["low_bytes"] for line in found["lines"]}

    assert found["verdict"] == "fits"
    assert lines.pop("graphs and results") == core.scratch_bytes // 2
    assert lines["key-value cache"] == core.cache_bytes
    assert sum(lines.values()) == core.weight_bytes + core.cache_bytes
    assert found["largest"]["certain"] > 8


@pytest.mark.parametrize(
    ("release", "option", "block"),
    [
        ("djl-tensorrtllm-0.33.0", "", 32),
        ("djl-tensorrtllm-0.33.0", "    tokens_per_block: 128\n", 128),
    ],
)
def test_blocks_of_the_cache_are_those_of_the_release(
    release: str,
    option: str,
    block: int,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """192 tokens in whole blocks, and the share of memory that the recipe leaves."""
    engine = (
        "  backend: tensorrt-llm\n  target: ml.g5.2xlarge\n"
        f"  release: {release}\n" + (f"  options:\n{option}" if option else "")
    )
    path = folder / "trtllm.yaml"
    text = RECIPE.replace("  backend: onnxruntime\n", engine).replace(QUANTIZE, "")
    path.write_text(text.replace("128\n  max_o", "129\n  max_o"), "utf-8")
    found = document(folder, str(path), capsys=capsys)
    (cache,) = (x for x in found["lines"] if x["name"] == "key-value cache")

    tokens = -(-193 // block) * block
    assert cache["low_bytes"] == 8 * tokens * 3 * 2 * 2 * 32 * 2


def test_an_unknown_release_is_told_with_its_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the backend finds wrong with the target ends the command, as in a plan."""
    engine = "  backend: tensorrt-llm\n  target: ml.g5.2xlarge\n  release: djl-9\n"
    path = folder / "unknown.yaml"
    path.write_text(RECIPE.replace("  backend: onnxruntime\n", engine), "utf-8")
    status, _, err = size(folder, str(path), capsys=capsys)

    assert status == 2
    assert "compile.unknown-release" in err
    assert "unknown.yaml:16:12" in err


def test_what_a_core_has_no_room_for_is_told_with_a_batch_that_fits(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The change is proven by the backend's own count."""
    path = folder / "crowded.yaml"
    text = RECIPE.replace("  backend: onnxruntime\n", NEURON).replace(QUANTIZE, "")
    path.write_text(text, "utf-8")
    crowded = ["--set", "bounds.max_batch_size=60000", "--memory", "1GiB"]
    found = document(folder, str(path), *crowded, capsys=capsys)
    change = found["changes"][0]
    fitting = ["--set", f"{change['path']}={change['value']}", "--memory", "1GiB"]

    assert found["verdict"] == "cannot fit"
    assert change["path"] == "bounds.max_batch_size"
    assert document(folder, str(path), *fitting, capsys=capsys)["verdict"] == "fits"


def lines_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The lines of a report by name."""
    return {line["name"]: line for line in report["lines"]}


def test_adapters_and_a_draft_model_are_lines_of_their_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four adapters of rank 8: each linear's channels in and out, two bytes each."""
    model = ["--model", str(folder / "model"), *MODEL]
    bare = document(folder, *model, capsys=capsys)
    more = document(
        folder,
        *(*model, "--max-loras", "4", "--max-lora-rank", "8"),
        *("--draft-model", str(folder / "model")),
        capsys=capsys,
    )
    config = json.loads((folder / "model" / "config.json").read_text("utf-8"))
    wide, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    key = config["num_key_value_heads"] * config.get("head_dim", wide // heads)
    query = heads * config.get("head_dim", wide // heads)
    attention = 2 * (wide + query) + 2 * (wide + key)
    channels = config["num_hidden_layers"] * (attention + 3 * (wide + inner))
    before, after = lines_of(bare), lines_of(more)

    assert set(after) - set(before) == {
        "adapters",
        "draft model: weights",
        "draft model: cache",
    }
    assert after["adapters"]["low_bytes"] == 4 * 8 * 2 * channels
    assert (
        after["draft model: cache"]["low_bytes"]
        == (before["key-value cache"]["low_bytes"])
    )


def test_a_recipes_environment_asks_for_adapters(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What LMI is told counts, with its own number of adapters where none is said."""
    recipe = folder / "adapters.yaml"
    recipe.write_text(
        f"{RECIPE}serve:\n  environment:\n"
        '    OPTION_ENABLE_LORA: "true"\n    OPTION_MAX_LORA_RANK: "8"\n'
        "    OPTION_SPECULATIVE_DRAFT_MODEL: some/model\n",
        "utf-8",
    )
    report = document(folder, str(recipe), capsys=capsys)

    assert lines_of(report)["adapters"]["formula"].startswith("4 adapters x rank 8 x ")
    assert any("--draft-model" in why for why in report["unknown"])


@pytest.mark.parametrize(
    ("told", "code"),
    [
        (["--max-lora-rank", "8"], "size.no-adapters"),
        (["--bits", "4"], "size.no-method"),
        (["--group-size", "64"], "size.no-method"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(
    folder: Path, told: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(folder / "model"), *MODEL]
    status, _, err = size(folder, *model, *told, capsys=capsys)

    assert status == 2
    assert f"error[{code}]" in err


def test_an_8_bit_cache_is_half_as_large_without_quantized_weights(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(folder / "model"), *MODEL]
    whole = lines_of(document(folder, *model, capsys=capsys))
    half = lines_of(document(folder, *model, "--kv-cache-dtype", "fp8", capsys=capsys))

    assert (
        2 * half["key-value cache"]["low_bytes"]
        == (whole["key-value cache"]["low_bytes"])
    )


def test_a_model_that_reads_images_is_unproven_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its weights are counted to the byte; its verdict is never `fits`."""
    import torch
    from safetensors.torch import save_file
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {**sizes, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 128}
    config = Gemma3Config(
        text_config={**text, "max_position_embeddings": 256},
        vision_config={**sizes, "image_size": 28, "patch_size": 14},
    )
    model = Gemma3ForConditionalGeneration(config).to(torch.bfloat16)
    folder = tmp_path / "model"
    config.architectures = ["Gemma3ForConditionalGeneration"]
    config.save_pretrained(folder)
    tensors = {
        name: value.clone()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "tokenizer.json").write_text("{}")
    asked = ["--model", str(folder), *MODEL, "--target", "ml.g5.2xlarge"]
    report = document(tmp_path, *asked, capsys=capsys)
    weights = [line for line in report["lines"] if line["name"].startswith("weights")]
    stored = sum(value.numel() * value.element_size() for value in tensors.values())

    assert report["verdict"] == "unproven"
    assert any("it reads images" in why for why in report["unknown"])
    assert sum(line["high_bytes"] for line in weights) == stored

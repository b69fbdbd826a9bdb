"""Questions from words, answers in words, and the recipe that an advice ends in."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.advise import Wishes, advise, ask, family_of, model_config, read_traffic
from lmi_build.advise_recipe import write_recipe
from lmi_build.cli.main import run
from lmi_build.errors import LmiBuildError, SourceInvalid, UsageInvalid
from lmi_build.recipe.load import load_recipe
from lmi_build.values.bounds import Bounds
from lmi_build.values.settings import Settings
from tiny_models import CONFIG, SHAPES, hf_files, safetensors

if TYPE_CHECKING:
    from pathlib import Path

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
# What `lmi-build bounds LOG --output json` prints, as far as it is read.
LOG = {
    "requests": 1000,
    "lengths": {"total": {"percentiles": {"50": 200, "99": 1000}}},
    "traffic": {"even": False, "padding_share": 0.6},
    "bounds": {"max_input_len": 900, "max_output_len": 100, "max_batch_size": 12},
}


def winner(config: dict[str, Any], **wishes: Any) -> str:
    """The best row for a question."""
    best = advise(ask(config, Wishes(**wishes))).winner
    return best.option.name if best else ""


def folder(tmp_path: Path) -> Path:
    """A small Llama on disk, wide enough for groups of 64 channels."""
    place = tmp_path / "model"
    wide = {
        name: tuple(number if number == 12 else number * 16 for number in shape)
        for name, shape in SHAPES.items()
    }
    config = {
        **CONFIG,
        "hidden_size": 128,
        "intermediate_size": 256,
        "max_position_embeddings": 1024,
    }
    files = {**hf_files(config=config), "model.safetensors": safetensors(wide)}
    for name, content in files.items():
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return place


def test_even_traffic_is_for_compiled_engines_and_uneven_is_not() -> None:
    """The second factor of LMI's guide decides between its two recommendations."""
    assert winner(LLAMA, device="gpu", traffic="even") == "tensorrt-llm on gpu"
    assert winner(LLAMA, device="gpu", traffic="uneven") == "vllm on gpu"
    assert winner(LLAMA, device="gpu") == "vllm on gpu"


def test_cost_leads_to_inferentia() -> None:
    """The third factor: Neuron instances are the cheaper ones, where they serve."""

    def lead(**wishes: Any) -> int:
        """Points of vLLM on Neuron over vLLM on a GPU."""
        rows = advise(ask(LLAMA, Wishes(**wishes))).candidates
        scores = {row.option.name: row.score for row in rows}
        return scores["vllm on neuron"] - scores["vllm on gpu"]

    assert lead(goal="cost", concurrency=16) > lead(concurrency=16)
    assert winner({"model_type": "falcon"}, goal="cost", concurrency=16) == (
        "vllm on gpu"
    )


def test_a_model_quantized_already_is_asked_about_as_it_is() -> None:
    config = {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4}}

    assert ask(config, Wishes()).technique == "gptq"
    assert ask(config, Wishes(technique="none")).technique == "none"


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen2"},
        {"model_type": "my_qwen", "architectures": ["Qwen2ForCausalLM"]},
        {"architectures": ["Qwen2ForCausalLM"]},
    ],
)
def test_families_are_found_by_type_or_class(config: dict[str, Any]) -> None:
    assert family_of(config) == "qwen2"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architectures": 3},
        {"architectures": "LlamaForCausalLM"},
        {"model_type": 1},
    ],
)
def test_a_config_without_a_family_is_refused(config: dict[str, Any]) -> None:
    """Nothing in it can be trusted to be what it should be."""
    with pytest.raises(UsageInvalid) as caught:
        family_of(config)

    assert caught.value.code == "advice.unknown-model"


def test_an_unknown_family_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageInvalid) as caught:
        family_of({"model_type": "qwn2"})

    assert caught.value.code == "advice.unknown-model"
    assert caught.value.hints[0] in {"did you mean `qwen2`?", "did you mean `qwen3`?"}


@pytest.mark.parametrize(
    ("wishes", "code", "hint"),
    [
        ({"features": ("lorra",)}, "advice.unknown-word", "`lora`"),
        ({"technique": "gpqt"}, "advice.unknown-word", "`gptq`"),
        ({"device": "tpu"}, "advice.unknown-word", "`gpu`"),
        ({"goal": "latencies"}, "advice.unknown-word", "`latency`"),
        ({"life": "alive"}, "advice.unknown-word", "`maintained`"),
        ({"traffic": "uneve"}, "advice.unknown-word", "`uneven`"),
        ({"instance": "ml.g5.3xlarge"}, "advice.unknown-word", "ml.g"),
        ({"instance": "inf2.xlarge", "device": "gpu"}, "advice.two-devices", "--dev"),
    ],
)
def test_wrong_words_are_refused(wishes: Any, code: str, hint: str) -> None:
    """Each with what was probably meant."""
    with pytest.raises(UsageInvalid) as caught:
        ask(LLAMA, Wishes(**wishes))

    assert caught.value.code == code
    assert hint in "".join(caught.value.hints)


def test_traffic_is_what_bounds_prints(tmp_path: Path) -> None:
    file = tmp_path / "traffic.json"
    file.write_text(json.dumps(LOG))
    question = ask(LLAMA, Wishes(traffic=str(file)))

    assert (question.traffic, question.spread) == ("uneven", 5)
    assert question.concurrency == 12
    assert ask(LLAMA, Wishes(traffic=str(file), concurrency=3)).concurrency == 3


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "traffic.empty"),
        ("[]", "traffic.not-a-log"),
        ("{}", "traffic.no-column"),
        ('{"traffic": {}}', "traffic.no-column"),
        ('{"lengths": {"total": 3}}', "advice.unreadable"),
        ("\x00", "traffic.not-a-log"),
    ],
)
def test_a_file_that_is_no_traffic_is_refused(
    tmp_path: Path, text: str, code: str
) -> None:
    file = tmp_path / "traffic.json"
    file.write_text(text)

    with pytest.raises(LmiBuildError) as caught:
        read_traffic(str(file))

    assert caught.value.code == code
    assert str(file) in caught.value.message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceInvalid, match="No such file"):
        read_traffic(str(tmp_path / "no.json"))


def test_a_log_and_what_bounds_prints_of_it_are_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`advise` and `cost` take either, with times and without."""
    recipe = tmp_path / "recipe.yaml"
    argv = ["advise", "--model", str(folder(tmp_path)), "--device", "gpu"]
    assert run([*argv, "--traffic", "even", "--write", str(recipe)]) == 0
    for name, columns in (("plain", ""), ("timed", ",timestamp")):
        log, printed = tmp_path / f"{name}.csv", tmp_path / f"{name}.json"
        rows = [f"{n % 70 + 1},{n % 9 + 1}" for n in range(300)]
        times = [f",{1000 + n}" if columns else "" for n in range(300)]
        text = "\n".join(row + at for row, at in zip(rows, times, strict=True))
        log.write_text(f"input_tokens,output_tokens{columns}\n{text}\n")
        capsys.readouterr()
        asked = ["--request-seconds", "2"] if columns else []
        assert run(["bounds", str(log), "--output", "json", *asked]) == 0
        printed.write_text(capsys.readouterr().out)

        found, again = read_traffic(str(log)), read_traffic(str(printed))
        assert replace(again, max_batch_size=0) == found
        documents = []
        for file in (log, printed):
            words = ["--instance", "ml.g5.xlarge", "--output", "json"]
            assert run(["cost", str(recipe), "--traffic", str(file), *words]) == 0
            documents.append(json.loads(capsys.readouterr().out)[0]["traffic"])
        assert documents[0] == documents[1]
        assert documents[0]["requests_per_second"] == (1.0 if columns else None)


def test_a_model_is_a_word_a_file_a_folder_or_a_source(tmp_path: Path) -> None:
    """No weight is read, and nothing is asked of a network."""
    settings = Settings(cache_dir=tmp_path / "cache", offline=True)
    place = folder(tmp_path)

    for model in (
        "llama",
        "LlamaForCausalLM",
        str(place),
        str(place / "config.json"),
    ):
        assert family_of(model_config(model, settings)) == "llama"


def test_weights_quantized_already_are_not_quantized_again(tmp_path: Path) -> None:
    """What a model comes in is read by the winner, and the recipe leaves it alone."""
    config = {**LLAMA, "quantization_config": {"quant_method": "compressed-tensors"}}
    out = tmp_path / "recipe.yaml"
    answer = advise(ask(config, Wishes(device="gpu", traffic="even")))
    recipe = write_recipe(
        answer,
        out,
        Settings(cache_dir=tmp_path / "cache", offline=True),
        name="coded",
        source="owner/coded",
        config=config,
        bounds=Bounds(max_input_len=512, max_output_len=128),
    )

    assert answer.question.technique == "compressed-tensors"
    assert recipe.quantize.method == "none"
    assert recipe.compile.backend == "tensorrt-llm"


@pytest.mark.parametrize(
    ("words", "backend", "target"),
    [
        ("--device gpu --traffic even", "tensorrt-llm", "ml.g5.2xlarge"),
        ("--instance ml.g6.12xlarge --traffic even", "tensorrt-llm", "ml.g6.12xlarge"),
        ("--device cpu --technique gptq --built", "onnxruntime", "cpu"),
        ("--instance ml.c7i.4xlarge --built", "onnxruntime", "cpu"),
        ("--device gpu --built --technique int8", "vllm", "ml.g5.2xlarge"),
        ("--device gpu --features lora", "vllm", "ml.g5.2xlarge"),
        ("--instance ml.g6.12xlarge --technique awq", "vllm", "ml.g6.12xlarge"),
    ],
)
def test_the_recipe_is_valid(
    tmp_path: Path, words: str, backend: str, target: str
) -> None:
    """What `--write` writes is what `validate` takes, and `advise` agrees with it."""
    out = tmp_path / "recipe.yaml"
    model = str(folder(tmp_path))
    argv = ["advise", "--model", model, *words.split(), "--write", str(out)]

    assert run(argv) == 0
    assert run(["validate", str(out)]) == 0
    recipe = load_recipe(out)[0]
    assert (recipe.compile.backend, recipe.compile.target) == (backend, target)
    assert (recipe.bounds.max_input_len, recipe.bounds.max_output_len) == (512, 128)
    assert run(["advise", str(out), "--built", "--output", "json"]) == 0


def test_bounds_of_the_log_go_into_the_recipe(tmp_path: Path) -> None:
    file, out = tmp_path / "traffic.json", tmp_path / "recipe.yaml"
    even = {**LOG, "traffic": {"even": True}}
    even["bounds"] = {
        "max_input_len": 40,
        "max_output_len": 10,
        "max_batch_size": 6,
    }
    file.write_text(json.dumps(even))
    argv = ["advise", "--model", str(folder(tmp_path)), "--device", "gpu"]

    assert run([*argv, "--traffic", str(file), "--write", str(out)]) == 0
    bounds = load_recipe(out)[0].bounds
    assert (bounds.max_input_len, bounds.max_output_len) == (40, 10)
    assert bounds.max_batch_size == 6


def test_a_family_stands_in_for_a_model_out_of_reach(tmp_path: Path) -> None:
    """A recipe of a hub model can be asked about, and written anew, offline."""
    asked, out = tmp_path / "asked.yaml", tmp_path / "out.yaml"
    argv = ["init", str(asked), "--model", "owner/model", "--method", "none"]
    assert run([*argv, "--cache-dir", str(tmp_path)]) == 0
    words = ["--model", "llama", "--device", "gpu", "--traffic", "even"]
    common = ["--offline", "--cache-dir", str(tmp_path)]

    assert run(["advise", str(asked), *common]) == 6
    assert run(["advise", str(asked), *words, "--write", str(out), *common]) == 0
    recipe = load_recipe(out)[0]
    assert recipe.model.source == "owner/model"
    assert recipe.compile.backend == "tensorrt-llm"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], "advice.no-model"),
        (["--model", "llama", "--device", "cpu", "--write", "r"], "advice.no-source"),
        (
            [
                "--model",
                "llama",
                "--device",
                "cpu",
                "--technique",
                "gguf",
                "--write",
                "r",
            ],
            "advice.not-built",
        ),
        (["--model", "qwn2"], "advice.unknown-model"),
    ],
)
def test_refusals_name_their_code(
    words: list[str],
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A question that makes no sense ends with status 2 and nothing is written."""
    monkeypatch.chdir(tmp_path)

    assert run(["advise", *words]) == 2
    assert f"error[{code}]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "recipe.yaml"
    out.write_text("mine")
    argv = ["advise", "--model", str(folder(tmp_path)), "--device", "cpu"]

    assert run([*argv, "--write", str(out)]) == 2
    assert out.read_text() == "mine"

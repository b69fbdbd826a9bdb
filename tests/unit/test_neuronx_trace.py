"""What a recipe of an encoder becomes, and what it is refused for."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.backends.neuronx.compile_plan import compile_plan
from lmi_build.backends.neuronx.encoders import (
    encoder_models,
    encoder_tasks,
    is_encoder,
    task_of,
    usable_positions,
)
from lmi_build.backends.neuronx.preflight import Hardware, Needs, check_hardware
from lmi_build.backends.neuronx.sentence import Sentence, read_sentence
from lmi_build.backends.neuronx.trace import (
    graph_bytes,
    graph_lengths,
    length_buckets,
    lower_trace,
    trace_device_needed,
    trace_estimate,
    trace_expected,
    trace_notes,
    trace_serving,
)
from lmi_build.backends.neuronx.trace_problems import trace_problems
from lmi_build.catalog.instances import instances
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.errors import LmiBuildError, ToolMissing
from lmi_build.package.layouts import layout_problems
from lmi_build.values.recipe import CompileSpec, QuantSpec, ServeSpec
from neuron_encoders import FILES, MINILM, RELEASE, ROBERTA, model, recipe

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.errors import Problem
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe


def problems(
    wanted: Recipe, found: ModelFacts | None = None, target: str = "ml.inf2.xlarge"
) -> list[Problem]:
    return list(trace_problems(wanted, found or model(), instance=instances()[target]))


def compiled(**parts: Any) -> CompileSpec:
    return CompileSpec(backend="neuronx", target="ml.inf2.xlarge", **parts)


def test_a_recipe_becomes_one_graph_for_each_length() -> None:
    call = lower_trace(
        recipe(max_input_len=512, max_batch_size=8), model(), family="inf2"
    )
    words = ["--target", "inf2", "--auto-cast", "none", "--optlevel", "2"]

    assert call.to_json() == {
        "schema": "lmi-build/neuron-call/v1",
        "loader": "trace",
        "model_class": "transformers.AutoModel",
        "arguments": {
            "task": "feature-extraction",
            "inputs": ["input_ids", "attention_mask", "token_type_ids"],
            "batch_size": 8,
            "padding_id": 0,
            "pooling": [],
            "normalize": None,
        },
        "steps": [
            [
                "trace",
                {
                    "length": length,
                    "file": {"path": f"model.{length}.pt"},
                    "compiler_args": words,
                },
            ]
            for length in (128, 256, 512)
        ],
        "environment": {"NEURON_PLATFORM_TARGET_OVERRIDE": "inf2"},
        "flags": words,
        "num_graphs": 3,
        "num_neffs": 0,
        "files": ["model.128.pt", "model.256.pt", "model.512.pt", "reference.json"],
        "target": "inf2",
    }
    assert trace_expected(call)["lengths"] == [128, 256, 512] == [*graph_lengths(call)]


@pytest.mark.parametrize(
    ("longest", "lengths"),
    [(1, (1,)), (128, (128,)), (129, (128, 129)), (384, (128, 256, 384))],
)
def test_lengths_double_up_to_the_bound(longest: int, lengths: tuple[int, ...]) -> None:
    assert length_buckets(longest) == lengths


def test_options_become_words_of_the_compiler() -> None:
    options: dict[str, Any] = {
        "auto_cast": "matmult",
        "auto_cast_type": "fp16",
        "optlevel": 3,
        "saturate_infinity": True,
        "mixed_precision_accumulation": True,
    }

    assert lower_trace(recipe(options), model(), family="trn1").flags == (
        *("--target", "trn1", "--auto-cast", "matmult", "--auto-cast-type", "fp16"),
        *("--optlevel", "3", "--enable-saturate-infinity"),
        "--enable-mixed-precision-accumulation",
    )


def test_a_good_recipe_has_no_problems() -> None:
    wanted = recipe(max_input_len=512, max_batch_size=32)
    named = recipe({"pooling": "mean", "normalize": True})
    bare = model(files=("config.json", "model.safetensors", "tokenizer.json"))
    roberta = recipe(max_input_len=512)

    assert problems(wanted) == []
    assert problems(named, bare) == []
    assert problems(roberta, model(ROBERTA)) == []


@pytest.mark.parametrize(
    ("change", "code", "path", "numbers"),
    [
        (
            {"quantize": QuantSpec(method="awq")},
            "neuronx.encoder-quantized",
            "quantize.method",
            "awq",
        ),
        (
            {"compile": compiled(tensor_parallel_size=2)},
            "neuronx.encoder-parallel",
            "compile.tensor_parallel_size",
            "2 cores",
        ),
        (
            {"max_input_len": 513},
            "neuronx.encoder-length",
            "bounds.max_input_len",
            "513 tokens.*512 positions",
        ),
        (
            {"serve": ServeSpec(options={"max_batch_dely": 5})},
            "neuronx.encoder-option",
            "serve.options.max_batch_dely",
            "max_batch_dely",
        ),
        (
            {"serve": ServeSpec(options={"max_batch_delay": 0})},
            "neuronx.encoder-option",
            "serve.options.max_batch_delay",
            "is 0",
        ),
        (
            {"serve": ServeSpec(options={"dynamic_batching": 1})},
            "neuronx.encoder-option",
            "serve.options.dynamic_batching",
            "is 1",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_place(
    change: dict[str, Any], code: str, path: str, numbers: str
) -> None:
    (found,) = problems(recipe(**change))

    assert (found.code, found.path) == (code, path)
    assert found.hint
    with pytest.raises(AssertionError, match=numbers):
        raise AssertionError(found.message)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"auto_cst": "all"}, "did you mean `auto_cast`"),
        ({"auto_cast": "bf16"}, "`none`, `matmult` or `all`"),
        ({"optlevel": "2"}, "`1`, `2` or `3`"),
        ({"optlevel": True}, "`1`, `2` or `3`"),
        ({"pooling": "weightedmean"}, "`cls`, `max`, `mean`"),
        ({"normalize": 1}, "true or false"),
        ({"task": "fill-mask"}, "`feature-extraction`"),
        ({"task": "summarization"}, "`feature-extraction`"),
        ({"length_buckets": [8, 16]}, "end it with 24"),
        ({"length_buckets": [16, 8, 24]}, "[12, 24]"),
        ({"length_buckets": [True, 24]}, "[12, 24]"),
        ({"length_buckets": 24}, "[12, 24]"),
        ({"length_buckets": list(range(8, 25))}, "at most 16"),
        ({"batch_size": 4}, "bounds.max_batch_size"),
        ({"sequence_length": 4}, "bounds.max_input_len"),
    ],
)
def test_an_option_that_is_wrong_is_refused_with_what_to_write(
    options: dict[str, Any], hint: str
) -> None:
    (found,) = problems(recipe(options))

    assert found.path == f"compile.options.{next(iter(options))}"
    assert hint in found.hint


def test_positions_before_the_padding_tokens_number_are_never_used() -> None:
    """RoBERTa's 514 rows hold 512 tokens; nobody says so before a text is too long."""
    (found,) = problems(recipe(max_input_len=513), model(ROBERTA))

    assert found.hint == "lower it to 512"
    assert "514 positions, 2 of them unused" in found.message
    assert usable_positions(MINILM, 512) == 512


@pytest.mark.parametrize("name", ["max_output_len", "max_beam_width", "max_num_tokens"])
def test_bounds_of_generation_mean_nothing(name: str) -> None:
    bounds = replace(recipe().bounds, **{name: 7})
    (found,) = problems(replace(recipe(), bounds=bounds))

    assert (found.code, found.path) == ("neuronx.encoder-bound", f"bounds.{name}")


@pytest.mark.parametrize(
    ("config", "files", "options", "code"),
    [
        ({}, ("tokenizer.json",), {}, "neuronx.encoder-pooling"),
        ({}, ("modules.json",), {}, "neuronx.encoder-tokenizer"),
        ({"architectures": ["BertForMaskedLM"]}, ("tokenizer.json",), {}, "task"),
        ({"architectures": ["BertForPreTraining"]}, ("tokenizer.json",), {}, "task"),
        ({}, FILES, {"task": "text-classification"}, "task"),
        (
            {"architectures": ["BertForSequenceClassification"]},
            ("tokenizer.json",),
            {"pooling": "cls"},
            "option",
        ),
        ({"quantization_config": {"bits": 4}}, FILES, {}, "quantized"),
    ],
)
def test_a_model_that_does_not_say_what_is_needed_is_refused(
    config: dict[str, Any], files: tuple[str, ...], options: dict[str, Any], code: str
) -> None:
    (found,) = problems(recipe(options), model({**MINILM, **config}, files=files))

    assert found.code.endswith(code)


def test_a_masked_model_with_a_pooling_is_an_encoder_of_texts() -> None:
    """Its head is left out: all-distilroberta-v1 and others are saved with it."""
    masked = {**MINILM, "architectures": ["BertForMaskedLM"]}
    asked = {"task": "feature-extraction", "pooling": "cls"}

    assert problems(recipe(asked), model(masked, files=("tokenizer.json",))) == []
    assert problems(recipe(), model(masked)) == []
    assert task_of(masked, sentence=True) == "feature-extraction"
    assert task_of(masked, sentence=False) == "fill-mask"


def test_graphs_that_do_not_fit_a_core_are_refused_with_fewer_lengths() -> None:
    """Two cores share 32 GiB, and each graph holds all weights."""
    large = model(num_elements=2 << 30)
    (found,) = problems(recipe(max_input_len=512), large)

    assert found.code == "neuronx.encoder-memory"
    assert "24.0 GiB" in found.message
    assert "16.0 GiB" in found.message
    assert problems(recipe({"length_buckets": [24]}), large) == []


def test_the_estimate_grows_with_the_graphs() -> None:
    one, two = recipe({"length_buckets": [24]}), recipe({"length_buckets": [8, 24]})

    assert graph_bytes(two, model()) == 2 * graph_bytes(one, model())
    assert trace_estimate(two, model()).disk_bytes == graph_bytes(two, model())
    assert [note.code for note in trace_notes(one)] == [
        "neuronx.encoder-graphs",
        "neuronx.encoder-float32",
    ]
    assert len(trace_notes(recipe({"auto_cast": "all"}))) == 1


def test_every_release_says_whether_it_needs_a_device() -> None:
    needed = {
        name for name, row in neuron_releases().items() if trace_device_needed(row)
    }

    assert "djl-neuronx-0.30.0" in needed
    assert "djl-neuronx-0.26.0" not in needed


@pytest.mark.parametrize(
    ("loader", "library"), [("trace", "torch-neuronx"), ("tnx", "transformers-neuronx")]
)
def test_a_missing_device_is_told_of_the_library_that_needs_it(
    loader: str, library: str
) -> None:
    """A newer transformers-neuronx would not help an encoder."""
    call = replace(lower_trace(recipe(), model(), family="inf2"), loader=loader)
    plan = compile_plan(call, RELEASE, num_cores=1, device_needed=True)
    needs = Needs(
        versions=plan.versions,
        target="ml.inf2.xlarge",
        num_cores=1,
        device_needed=True,
        host_bytes=0,
        disk_bytes=0,
    )
    bare = Hardware(instance="", devices=(), driver="")
    with pytest.raises(ToolMissing, match=f"release's {library} compiles") as caught:
        check_hardware(bare, needs)

    assert ("--rehearse" in caught.value.hints[1]) == (loader == "trace")


class TestServing:
    """One worker on each core, and requests joined up to the graph's batch."""

    def test_properties(self) -> None:
        """The degree is written: without it a front end may give one worker all."""
        serving = trace_serving(recipe(max_batch_size=8))

        assert serving.properties == {
            "option.tensor_parallel_degree": "1",
            "minWorkers": "1",
            "maxWorkers": "1",
            "batch_size": "8",
            "max_batch_delay": "10",
        }
        assert list(layout_problems(recipe(), serving)) == []

    @pytest.mark.parametrize(
        "wanted",
        [
            recipe(max_batch_size=1),
            recipe(
                max_batch_size=8, serve=ServeSpec(options={"dynamic_batching": False})
            ),
        ],
    )
    def test_requests_are_not_joined_where_they_need_not_be(
        self, wanted: Recipe
    ) -> None:
        """Then each has a status of its own."""
        properties = trace_serving(wanted).properties

        assert properties["batch_size"] == "1"
        assert "max_batch_delay" not in properties


class TestSentenceFiles:
    """What sentence-transformers wrote is read, or refused by name."""

    def write(self, folder: Path, files: dict[str, Any]) -> Path:
        """A model's folder with files of JSON."""
        for name, document in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(document))
        return folder

    def files(self, *kinds: str, **more: Any) -> dict[str, Any]:
        """Files of an encoder with these modules."""
        rows = [
            {"path": "" if n == 0 else f"{n}_{kind}", "type": f"sentence.models.{kind}"}
            for n, kind in enumerate(kinds)
        ]
        pooling = {"1_Pooling/config.json": {"pooling_mode_mean_tokens": True}}
        return {"modules.json": rows, **pooling, **more}

    def test_another_model_has_none(self, tmp_path: Path) -> None:
        """Then the recipe must say it."""
        assert read_sentence(tmp_path) is None

    def test_all_of_it(self, tmp_path: Path) -> None:
        """As all-MiniLM-L6-v2 has it."""
        more = {
            "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": True},
            "config_sentence_transformers.json": {"default_prompt_name": None},
        }
        files = self.files("Transformer", "Pooling", "Normalize", **more)

        assert read_sentence(self.write(tmp_path, files)) == Sentence(
            pooling=("mean",),
            normalize=True,
            strip=True,
            lower=True,
            max_seq_length=256,
        )

    @pytest.mark.parametrize("mode", ["max", ["max", "cls"]])
    def test_the_newer_name_of_the_pooling(self, tmp_path: Path, mode: Any) -> None:
        """One name, or several, joined in an order of their own."""
        files = self.files("Transformer", "Pooling")
        files["1_Pooling/config.json"] = {"pooling_mode": mode}
        found = read_sentence(self.write(tmp_path, files))

        assert found is not None
        assert found.pooling == (("max",) if mode == "max" else ("cls", "max"))

    @pytest.mark.parametrize(
        ("files", "code"),
        [
            ({"modules.json": [{"type": "a.Transformer", "path": ""}]}, "module"),
            ({"1_Pooling/config.json": {"pooling_mode_lasttoken": True}}, "module"),
            ({"1_Pooling/config.json": {"pooling_mode_mean_tokens": False}}, "files"),
            ({"1_Pooling/config.json": []}, "files"),
            (
                {"config_sentence_transformers.json": {"default_prompt_name": "query"}},
                "module",
            ),
        ],
    )
    def test_what_a_graph_does_not_have_is_refused(
        self, tmp_path: Path, files: dict[str, Any], code: str
    ) -> None:
        """A vector without it would be another one."""
        every = {**self.files("Transformer", "Pooling"), **files}
        with pytest.raises(LmiBuildError) as caught:
            read_sentence(self.write(tmp_path, every))

        assert caught.value.code == f"neuronx.sentence-{code}"
        assert caught.value.hints

    def test_a_layer_after_the_pooling_is_refused(self, tmp_path: Path) -> None:
        """LaBSE and distiluse have one."""
        files = self.files("Transformer", "Pooling", "Dense", "Normalize")
        with pytest.raises(LmiBuildError, match="Pooling, Dense, Normalize"):
            read_sentence(self.write(tmp_path, files))


def test_an_encoder_is_known_by_its_type_and_its_name() -> None:
    assert is_encoder(MINILM)
    assert not is_encoder({"model_type": "llama"})
    assert not is_encoder({**MINILM, "is_decoder": True})
    assert not is_encoder({**MINILM, "architectures": ["BertLMHeadModel"]})


def test_tables_hold_together() -> None:
    """A task is built or says why it is not."""
    for task in encoder_tasks().values():
        assert bool(task.auto_class) != bool(task.refused), task.name
    for row in encoder_models().values():
        assert row.inputs[:2] == ("input_ids", "attention_mask")

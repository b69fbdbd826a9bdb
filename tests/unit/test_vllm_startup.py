"""What an image of `djl-lmi` does with a folder: its own properties, and others'."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from formats import scheme
from lmi_build.backends.start_up import choose_images, images
from lmi_build.backends.vllm.startup import vllm_startup, vllm_startup_everywhere
from lmi_build.catalog.vllm_releases import vllm_handlers, vllm_releases
from lmi_build.checkpoint.formats.config import quantization_config
from lmi_build.package.properties import render_properties
from trtllm_folders import folder_of
from vllm_recipes import problems, properties, vllm_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.folder import Folder

NEW, OLD = "djl-lmi-0.36.0", "djl-lmi-0.32.0"
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def folder(
    entries: Mapping[str, str] | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    weights: str = "model.safetensors",
) -> Folder:
    """A folder with a model and, where entries are given, properties."""
    texts = {"config.json": json.dumps(config or LLAMA), weights: "x"}
    if entries is not None:
        texts["serving.properties"] = render_properties(entries).decode()
    return folder_of(texts)


def quantized(packing: str, **changes: Any) -> dict[str, Any]:
    """The configuration of a quantized Llama."""
    form = scheme(packing, **changes)
    entry = quantization_config(form, left=("lm_head",), method="gptq")
    return {**LLAMA, "quantization_config": entry}


@pytest.mark.parametrize("name", vllm_releases())
def test_what_is_written_loads(name: str) -> None:
    """Every release loads what is written for it, by the handler that was meant."""
    for row in vllm_releases()[name].handlers:
        recipe = vllm_recipe(release=name, scheduler=vllm_handlers()[row].scheduler)
        assert problems(recipe) == []

        verdict = vllm_startup(folder(properties(recipe)), name)

        assert verdict.outcome == "loads", verdict
        assert f"`{row}`" in verdict.reason


@pytest.mark.parametrize(
    ("entries", "outcome", "word"),
    [
        ({"option.model_id": "owner/model"}, "elsewhere", "model_id"),
        ({"engine": "PyTorch"}, "fails", "engine"),
        ({"option.async_mode": "false"}, "fails", "async_mode"),
        ({"option.dtype": "float16"}, "fails", "option.dtype"),
        ({"option.pipeline_parallel_degree": "2"}, "fails", "pipeline"),
        ({"option.quantize": "fp8"}, "compiles", "every start"),
        ({"option.entryPoint": "djl_python.tensorrt_llm"}, "fails", "no handler"),
    ],
)
def test_one_changed_line_changes_the_verdict(
    entries: Mapping[str, str], outcome: str, word: str
) -> None:
    """Each with a reason that names the line, and a way out."""
    ours = properties(vllm_recipe())

    # What hands a model's id to the container is never written, only found.
    own = {**ours, **entries}
    text = "".join(f"{key}={value}\n" for key, value in own.items())
    found = folder_of(
        {
            "config.json": json.dumps(LLAMA),
            "model.safetensors": "x",
            "serving.properties": text,
        }
    )
    verdict = vllm_startup(found, NEW)

    assert verdict.outcome == outcome
    assert word in verdict.reason
    assert verdict.fix


def test_a_bare_folder_goes_to_the_handler_of_the_image() -> None:
    """Nothing is set: the front end decides by the architecture."""
    bare = {row.lmi: row.reason for row in vllm_startup_everywhere(folder())}

    assert "async-36" in bare["0.36.0"]
    assert "lmi-dist-30" in bare["0.32.0"]
    encoder = folder(config={"architectures": ["BertModel"], "model_type": "bert"})
    assert vllm_startup(encoder, NEW).outcome == "skips"
    assert vllm_startup(folder(weights="pytorch_model.bin"), NEW).outcome == "fails"


def test_lmi_dist_is_replaced_where_it_is_gone() -> None:
    """A folder of an old release still loads, by vLLM, and a note says so."""
    old = properties(vllm_recipe(release=OLD, scheduler="lmi-dist"))

    verdict = vllm_startup(folder(old), NEW)

    assert verdict.outcome == "loads"
    assert any("LMI-Dist" in note for note in verdict.notes)


@pytest.mark.parametrize(
    ("config", "release", "outcome"),
    [
        (quantized("gptq", group_size=128), NEW, "loads"),
        (quantized("gptq", group_size=128, sym=False), NEW, "fails"),
        (quantized("gptq", group_size=128, sym=False), OLD, "loads"),
        (quantized("awq", group_size=128, sym=False), NEW, "loads"),
        (quantized("pack-quantized", group_size=128), OLD, "loads"),
        (quantized("int-quantized"), NEW, "fails"),
    ],
)
def test_kernels_of_the_version_decide(
    config: Mapping[str, Any], release: str, outcome: str
) -> None:
    """Zero points of GPTQ went with exllama's own handler; AWQ's stay."""
    entries = properties(vllm_recipe(release=release, scheduler="vllm"))

    assert vllm_startup(folder(entries, config=config), release).outcome == outcome


def test_another_quantization_than_the_folders_own_ends_the_start() -> None:
    entries = {**properties(vllm_recipe()), "option.quantize": "awq"}

    found = vllm_startup(folder(entries, config=quantized("gptq", group_size=128)), NEW)

    assert found.outcome == "fails"
    assert found.fix == "remove `option.quantize`"


def test_a_base_that_older_transformers_ignores_is_noted() -> None:
    config = {**LLAMA, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    entries = properties(vllm_recipe(release=OLD, scheduler="vllm"))

    notes = vllm_startup(folder(entries, config=config), OLD).notes

    assert any("rope_parameters" in note for note in notes)


def test_images_are_chosen_by_what_the_folder_says() -> None:
    """A folder of ours asks vLLM's images; a named image is always asked."""
    ours = folder(properties(vllm_recipe()))

    assert {row.kind for row in choose_images(ours, None)} == {"vllm"}
    assert [row.name for row in choose_images(ours, "0.36")] == [NEW]
    assert [row.name for row in choose_images(folder(), NEW)] == [NEW]
    assert {row.kind for row in images().values()} == {"trtllm", "neuronx", "vllm"}


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_configuration_is_told(text: str) -> None:
    found = folder_of({"config.json": text, "model.safetensors": "x"})

    verdict = vllm_startup(found, NEW)

    assert verdict.outcome == "fails"
    assert "config.json" in verdict.reason

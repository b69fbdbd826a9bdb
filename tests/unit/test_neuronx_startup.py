"""What LMI's Neuron containers do with a folder when they start."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmi_build.backends.neuronx.front_ends import neuron_front_ends
from lmi_build.backends.neuronx.startup import (
    neuron_startup,
    neuron_startup_everywhere,
)
from lmi_build.catalog.neuron_releases import neuron_releases
from neuron_folders import (
    TNX_RELEASES,
    folder_of,
    neuron_call,
    neuron_texts,
    reachable_calls,
)

if TYPE_CHECKING:
    from lmi_build.backends.verdicts import Verdict
    from lmi_build.catalog.neuron_releases import NeuronRelease

RELEASES = pytest.mark.parametrize("release", TNX_RELEASES, ids=lambda row: row.version)
NEW = neuron_releases()["djl-neuronx-0.30.0"]
OLD = neuron_releases()["djl-neuronx-0.29.0"]
OLDER = neuron_releases()["djl-neuronx-0.27.0"]
OLDEST = neuron_releases()["djl-neuronx-0.26.0"]


def verdict(
    release: NeuronRelease, texts: dict[str, bytes], **environment: str
) -> Verdict:
    """What a release does with files."""
    return neuron_startup(folder_of(texts), release.version, environment=environment)


def with_property(texts: dict[str, bytes], key: str, value: str | None) -> None:
    """Set an entry of serving.properties, or take it out."""
    lines = texts["serving.properties"].decode().splitlines()
    kept = [line for line in lines if not line.startswith(f"{key}=")]
    texts["serving.properties"] = "\n".join(
        [*kept, *([f"{key}={value}"] if value is not None else [])]
    ).encode()


def with_config(texts: dict[str, bytes], **changes: Any) -> None:
    """Change `config.json`; None takes a name out."""
    document = {**json.loads(texts["config.json"]), **changes}
    kept = {name: value for name, value in document.items() if value is not None}
    texts["config.json"] = json.dumps(kept).encode()


@RELEASES
@settings(max_examples=15)
@given(data=st.data())
def test_what_is_laid_out_is_loaded(
    release: NeuronRelease, data: st.DataObject
) -> None:
    """Whatever was compiled, its own release loads it as it is, without a note."""
    call, rolling = data.draw(reachable_calls(release))
    if not rolling:
        return
    found = verdict(release, neuron_texts(release, call))

    assert (found.outcome, found.reason, found.notes) == (
        "loads",
        "config.json has a `neuron` block, and `compiled/` holds 2 graphs",
        (),
    )


def test_releases_of_one_toolchain_load_each_others() -> None:
    """And no other does: layouts and compilers differ."""
    found = neuron_startup_everywhere(folder_of(neuron_texts(NEW)))
    loading = [row.lmi for row in found if row.outcome == "loads"]

    assert loading == ["0.31.0", "0.30.0"]
    assert [row.lmi for row in found] == list(neuron_front_ends())


@RELEASES
def test_a_folder_without_the_block_is_not_compiled(release: NeuronRelease) -> None:
    """It is compiled at every start where its weights lie at the root."""
    texts = neuron_texts(release)
    with_config(texts, neuron=None)

    assert verdict(release, texts).outcome == "fails"
    texts["model.safetensors"] = b"weights"
    found = verdict(release, texts)
    assert found.outcome == "compiles"
    assert "no `neuron` block" in found.reason


@pytest.mark.parametrize(
    ("release", "outcome"),
    [(NEW, "compiles"), (OLD, "compiles"), (OLDER, "loads"), (OLDEST, "loads")],
)
def test_weights_at_the_root(release: NeuronRelease, outcome: str) -> None:
    """From 0.28 on they make the loader ignore the graphs."""
    texts = neuron_texts(release)
    texts["model.safetensors"] = b"weights"

    assert verdict(release, texts).outcome == outcome


@pytest.mark.parametrize(
    ("release", "outcome"),
    [(NEW, "fails"), (OLD, "compiles"), (OLDER, "fails"), (OLDEST, "fails")],
)
def test_no_graphs(release: NeuronRelease, outcome: str) -> None:
    """Without `compiled/` one release compiles, and the others end."""
    texts = {
        path: data
        for path, data in neuron_texts(release).items()
        if not path.startswith("compiled/")
    }

    assert verdict(release, texts).outcome == outcome


@RELEASES
def test_a_folder_without_neffs(release: NeuronRelease) -> None:
    """The loader wants graphs of certain names, and ends."""
    texts = {p: d for p, d in neuron_texts(release).items() if ".neff" not in p}
    found = verdict(release, texts)

    assert found.outcome == "fails"
    assert "matching NEFF" in found.reason


@RELEASES
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("option.tensor_parallel_degree", "8", ("8", "2")),
        ("option.max_rolling_batch_size", "16", ("16", "4")),
        ("option.dtype", "bf16", ("bf16", "f16")),
    ],
)
def test_numbers_that_were_not_compiled(
    release: NeuronRelease, key: str, value: str, words: tuple[str, str]
) -> None:
    """Both numbers are said, and the fix is the compiled one."""
    texts = neuron_texts(release)
    with_property(texts, key, value)
    found = verdict(release, texts)

    assert found.outcome == "fails"
    assert all(word in found.reason for word in words)
    assert words[1] in found.fix


def test_another_length_was_not_compiled() -> None:
    """The same of `n_positions`, where prompts may be shorter."""
    texts = neuron_texts(NEW)
    with_property(texts, "option.n_positions", "4096")

    assert "4096" in verdict(NEW, texts).reason


@pytest.mark.parametrize(
    ("key", "value", "outcome"),
    [
        ("option.model_loader", "optimum", "skips"),
        ("option.model_loader", "vllm", "skips"),
        ("option.rolling_batch", "vllm", "skips"),
        ("option.entryPoint", "djl_python.huggingface", "skips"),
        ("option.model_id", "s3://bucket/model", "elsewhere"),
        ("engine", "MPI", "fails"),
        ("option.dtype", "bfloat16", "fails"),
        ("option.tensor_parallel_degree", None, "fails"),
        ("option.tensor_parallel_degree", "max", "fails"),
        ("option.n_positions", None, "fails"),
        ("option.max_rolling_batch_size", None, "fails"),
        ("option.quantize", "awq", "fails"),
        ("option.cache_layout", "SHB", "fails"),
        ("option.fuse_qkv", "perhaps", "fails"),
        ("option.batch_size", "4", "fails"),
        ("option.context_length_estimate", "128,", "fails"),
        ("option.on_device_generation", "generation.json", "fails"),
        ("option.speculative_draft_model", "draft", "fails"),
    ],
)
def test_properties_that_do_not_load(key: str, value: str | None, outcome: str) -> None:
    """Each one says why and what to write instead."""
    texts = neuron_texts(NEW)
    with_property(texts, key, value)
    found = verdict(NEW, texts)

    assert found.outcome == outcome
    assert found.fix
    assert found.reason


def test_a_large_batch_left_to_the_server_goes_to_vllm() -> None:
    """`auto` becomes another scheduler from a batch of 12 on."""
    call = neuron_call(NEW, batch=16)
    texts = neuron_texts(NEW, call)
    assert verdict(NEW, texts).outcome == "loads"
    with_property(texts, "option.rolling_batch", "auto")
    found = verdict(NEW, texts)

    assert found.outcome == "skips"
    assert "vLLM" in found.reason


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("option.fuse_qkv", "true", "fuse_qkv` True"),
        ("option.quantize", "static_int8", "quant` True"),
        ("option.rolling_batch_strategy", "naive_rolling_batch", "continuous"),
        ("option.context_length_estimate", "128,2048", "[128, 2048]"),
        ("option.on_device_embedding", "false", "on_device_embedding"),
    ],
)
def test_options_that_were_not_compiled(key: str, value: str, words: str) -> None:
    """The build's own record tells; without it, that nothing can be told is said."""
    texts = neuron_texts(NEW)
    with_property(texts, key, value)
    found = verdict(NEW, texts)
    assert found.outcome == "fails"
    assert words in found.reason
    del texts["neuron.json"]
    found = verdict(NEW, texts)

    assert found.outcome == "loads"
    assert [note for note in found.notes if "options" in note]


def test_a_scheduler_for_gpus() -> None:
    """Newer servers make another of it, older ones another batch."""
    newest = TNX_RELEASES[0]
    texts = neuron_texts(newest)
    with_property(texts, "option.rolling_batch", "lmi-dist")
    assert verdict(newest, texts).outcome == "skips"
    texts = neuron_texts(OLD)
    with_property(texts, "option.rolling_batch", "lmi-dist")
    assert verdict(OLD, texts).outcome == "loads"
    with_property(texts, "option.max_rolling_batch_size", None)

    assert "256" in verdict(OLD, texts).reason


def test_another_compiler() -> None:
    """LMI never compares the version; the graphs would not be found."""
    texts = neuron_texts(NEW)
    texts["compiled/VERSION"] = b"2.16.372.0"
    found = verdict(NEW, texts)

    assert found.outcome == "fails"
    assert "2.16.372.0" in found.reason
    assert NEW.neuronx_cc in found.reason


def test_a_build_mark_is_the_same_version() -> None:
    """`2.15.141.0+d3c7b8f` is 2.15.141.0."""
    texts = neuron_texts(NEW)
    texts["compiled/VERSION"] = f"{NEW.neuronx_cc}+d3c7b8f".encode()

    assert verdict(NEW, texts).outcome == "loads"


@pytest.mark.parametrize(
    "name",
    [
        "compiled/DecoderLMHead.safetensors",
        "compiled/decoder_layer_1.safetensors",
        "compiled/config.json",
        "config.json",
        "tokenizer.json",
    ],
)
def test_a_file_is_missing(name: str) -> None:
    """Every file that the loader needs is asked for."""
    texts = neuron_texts(NEW)
    del texts[name]

    assert verdict(NEW, texts).outcome == "fails"


def test_the_layout_of_another_release() -> None:
    """Weights in `checkpoint/` are not those that newer loaders look for."""
    texts = neuron_texts(OLD)
    texts["compiled/VERSION"] = NEW.neuronx_cc.encode()
    found = verdict(NEW, texts)

    assert found.outcome == "fails"
    assert "older release" in found.reason


def test_several_files_of_weights_on_the_oldest() -> None:
    """Its library reads no index."""
    texts = neuron_texts(OLDEST)
    whole = texts.pop("checkpoint/model.safetensors")
    texts["checkpoint/model-00001-of-00002.safetensors"] = whole

    assert verdict(OLDEST, texts).outcome == "fails"
    assert "model.safetensors" in verdict(OLDEST, texts).reason


def test_notes_of_what_the_machine_decides() -> None:
    """What is not written down, and a cache that cannot be written to."""
    texts = neuron_texts(NEW)
    with_property(texts, "engine", None)
    with_property(texts, "option.entryPoint", None)
    del texts["compiled/VERSION"]
    del texts["generation_config.json"]
    found = verdict(NEW, texts, NEURON_COMPILE_CACHE_URL="/opt/ml/model/cache")

    assert found.outcome == "loads"
    assert len(found.notes) == 5
    assert any("a second one ends" in note for note in found.notes)


def test_variables_are_properties_and_defaults() -> None:
    """`OPTION_*` stands for a property; newer handlers read a few others."""
    texts = neuron_texts(NEW)
    with_property(texts, "option.dtype", None)
    assert verdict(NEW, texts, OPTION_DTYPE="fp16").outcome == "loads"
    assert verdict(NEW, texts, OPTION_DTYPE="bf16").outcome == "fails"
    newest = TNX_RELEASES[0]
    broken = neuron_texts(newest)
    with_property(broken, "option.context_length_estimate", None)

    assert verdict(newest, broken, NEURON_ON_DEV_GENERATION="true").outcome == "fails"
    assert (
        verdict(newest, broken, NEURON_CONTEXT_LENGTH_ESTIMATE="2048").outcome
        == "fails"
    )


def test_broken_texts() -> None:
    """Nothing that cannot be read is taken for loaded."""
    for name, data in (
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("compiled/config.json", b"{"),
        ("serving.properties", rb"engine=\u12"),
    ):
        texts = neuron_texts(NEW)
        texts[name] = data
        assert verdict(NEW, texts).outcome == "fails"


def test_a_model_type_without_a_class() -> None:
    """The loader's own table of classes decides."""
    texts = neuron_texts(NEW)
    with_config(texts, model_type="qwen2", architectures=["Qwen2ForCausalLM"])

    assert "qwen2" in verdict(NEW, texts).reason


def test_the_oldest_handlers_prefer_optimum() -> None:
    """Without a named loader, graphs of Transformers NeuronX are not looked for."""
    texts = neuron_texts(OLDER)
    for key in ("option.model_loader", "option.context_length_estimate"):
        with_property(texts, key, None)

    assert verdict(OLDER, texts).outcome == "skips"
    texts = neuron_texts(OLDEST)
    with_property(texts, "option.rolling_batch", "disable")
    assert verdict(OLDEST, texts).outcome == "skips"


def test_front_ends_agree_with_the_catalogue() -> None:
    """Two tables of the same sources say the same of every key."""
    for release in TNX_RELEASES:
        front = neuron_front_ends()[release.version]
        assert set(front.reads) <= set(release.properties) | {"on_device_generation"}
        assert set(front.neuron_config) <= set(release.options)
        assert front.layout == release.layout
        named = {name for name in release.loaders if name != "trace"}
        assert not front.model_loaders or named <= {*front.model_loaders}


def test_a_model_of_another_handler() -> None:
    """A handler beside the graphs answers instead."""
    texts = neuron_texts(NEW)
    with_property(texts, "option.entryPoint", None)
    texts["model.py"] = b""

    assert verdict(NEW, texts).outcome == "skips"

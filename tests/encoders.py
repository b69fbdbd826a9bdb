"""Tiny encoders with random weights, as folders of a hub."""

from __future__ import annotations

import json
import string
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

POSITIONS = 48
HIDDEN = 32
_SIZES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
}
_DISTIL = {"dim": HIDDEN, "n_layers": 2, "n_heads": 4, "hidden_dim": 40}
# Class names by model type; `AlbertModel` and so on are in transformers.
FAMILIES = {
    "albert": "Albert",
    "bert": "Bert",
    "camembert": "Camembert",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "mpnet": "MPNet",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
}
# Those that count positions from one after their padding token.
OFFSET = ("camembert", "mpnet", "roberta", "xlm-roberta")


def words() -> list[str]:
    """A vocabulary in which every text of ASCII letters and signs has tokens."""
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    whole = ["a", "graph", "is", "one", "more", "word", "the", "quick", "fox", "two"]
    rows = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    rows += [f"##{letter}" for letter in letters]
    return rows + [word for word in whole if word not in rows]


def tokenizer_text(*, padding_id: int = 0) -> str:
    """
    A `tokenizer.json` of WordPiece, with truncation and padding that must be undone.

    Args:
        padding_id: 0, or 1 to have the special tokens as RoBERTa numbers them.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    rows = words()
    if padding_id == 1:
        rows[0], rows[1] = rows[1], rows[0]
    tokenizer = Tokenizer(
        models.WordPiece(
            {word: index for index, word in enumerate(rows)}, unk_token="[UNK]"
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    # As sentence encoders on the hub have it.
    tokenizer.enable_truncation(max_length=8)
    tokenizer.enable_padding(length=8, pad_id=padding_id, pad_token=rows[padding_id])
    return str(tokenizer.to_str())


def make_encoder(
    folder: Path,
    family: str = "bert",
    *,
    head: str = "Model",
    sentence: Mapping[str, Any] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Any:
    """
    Save a model with random weights.

    Args:
        folder: Where; it is made.
        family: Model type.
        head: End of the class's name.
        sentence: sentence-transformers files: `pooling` (a name, or several),
            `normalize`, and more for `sentence_bert_config.json`.
        seed: Of the weights.
        **settings: Further entries of `config.json`.

    Returns:
        The model, ready to be asked.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    padding_id = 1 if family in OFFSET else 0
    name = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(
        **(_DISTIL if family == "distilbert" else _SIZES),
        vocab_size=len(words()),
        max_position_embeddings=POSITIONS,
        pad_token_id=padding_id,
        # Large enough for random answers to differ between texts.
        initializer_range=0.6,
        **({"embedding_size": 16} if family in {"albert", "electra"} else {}),
        **settings,
    )
    model = getattr(transformers, f"{name}{head}")(config).eval()
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_text(padding_id=padding_id))
    if sentence is not None:
        write_sentence(folder, **sentence)
    return model


def write_sentence(
    folder: Path, *, pooling: str | tuple[str, ...], normalize: bool, **settings: Any
) -> None:
    """What sentence-transformers writes beside a model."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": "" if index == 0 else f"{index}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    names = {pooling} if isinstance(pooling, str) else set(pooling)
    flags = {
        "pooling_mode_cls_token": "cls" in names,
        "pooling_mode_mean_tokens": "mean" in names,
        "pooling_mode_max_tokens": "max" in names,
        "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len" in names,
    }
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooled = {"word_embedding_dimension": HIDDEN, **flags}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooled))
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))


def token_ids(folder: Path, text: str) -> tuple[list[int], list[int]]:
    """Token and type ids of one text, all of them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found = tokenizer.encode(text)
    return list(found.ids), list(found.type_ids)


def float_states(model: Any, folder: Path, text: str) -> np.ndarray:
    """Hidden states of one unpadded text, float64 `[T, H]`."""
    import torch

    ids, types = token_ids(folder, text)
    inputs = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones((1, len(ids)), dtype=torch.long),
    }
    if model.config.model_type in {"albert", "bert", "electra"}:
        inputs["token_type_ids"] = torch.tensor([types])
    with torch.no_grad():
        found = model(**inputs)[0][0]
    return np.asarray(found.numpy(), np.float64)


def pooled(states: np.ndarray, pooling: tuple[str, ...], *, normalize: bool) -> Any:
    """One vector of `[T, H]` states, re-derived in float64."""
    ways = {
        "cls": lambda: states[0],
        "max": lambda: states.max(axis=0),
        "mean": lambda: states.mean(axis=0),
        "mean_sqrt_len": lambda: states.sum(axis=0) / np.sqrt(len(states)),
    }
    vector = np.concatenate([ways[name]() for name in pooling])
    return vector / np.linalg.norm(vector) if normalize else vector

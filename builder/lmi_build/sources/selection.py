"""Which files of a model folder are taken, by their names alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.errors import SourceInvalid
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
# What sentence-transformers writes beside an encoder: the order of its modules, and
# the settings of each in a folder of its own such as `1_Pooling`.
MODULES = "modules.json"
SENTENCE_FILE = re.compile(
    r"config_sentence_transformers\.json | sentence_[\w-]+_config\.json"
    r" | (?P<folder>\d{1,2}_[A-Za-z]\w*)/config\.json",
    re.VERBOSE | re.ASCII,
)

# Tokenizers in the order in which transformers prefers them.
_TOKENIZERS: tuple[frozenset[str], ...] = (
    frozenset({"tokenizer.json"}),
    frozenset({"tokenizer.model"}),
    frozenset({"vocab.json", "merges.txt"}),
    frozenset({"spiece.model"}),
    frozenset({"sentencepiece.bpe.model"}),
    frozenset({"vocab.txt"}),
    frozenset({"tekken.json"}),
    frozenset({"tiktoken.model"}),
)
_TAKEN = re.compile(
    r"""(?x)
    config\.json | generation_config\.json | hf_quant_config\.json
    | tokenizer[\w.-]*\.(?:json|model) | vocab\.(?:json|txt) | merges\.txt
    | (?:spiece|sentencepiece\.bpe|tiktoken)\.model | tekken\.json
    | special_tokens_map\.json | added_tokens\.json
    | chat_template[\w.-]*\.(?:jinja|json)
    | (?:preprocessor|processor)_config\.json
    """
)
_LEGAL = re.compile(
    r"(?i)(?:licen[sc]e|copying|notice|use_policy|readme)(?:[._-][\w.-]*)?"
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Bounds on a component, so that no source can name something the disk refuses.
_MAX_NAME_BYTES = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """
    Files by their use, as names relative to the model's folder.

    Args:
        weights: Safetensors files.
        others: Configuration, tokenizer, licence, read-me; of a sentence encoder also
            the settings of its modules, each in a folder of its own.
        code: The model's own Python files.
    """

    weights: tuple[str, ...]
    others: tuple[str, ...]
    code: tuple[str, ...]


def check_name(name: str, *, source: str) -> str:
    """
    Accept a file name that a hub or a bucket told us.

    Raises:
        SourceInvalid: `source.unsafe-name`: it could leave the folder it is written to
            or cannot be written everywhere.
    """
    parts = name.split("/")
    bad = (
        not name
        or name.startswith(("/", "~"))
        or "\\" in name
        or any(part in {"", ".", ".."} for part in parts)
        or re.match(r"[A-Za-z]:", name) is not None
        or not name.isprintable()
        or any(len(part.encode("utf-8", "replace")) > _MAX_NAME_BYTES for part in parts)
    )
    if bad:
        raise SourceInvalid(
            f"`{source}` lists a file named {name!r}, which is not a plain relative"
            " path",
            code="source.unsafe-name",
            hints=("rename that file at the source; it is refused for safety",),
        )
    return name


def require_tokenizer(names: Iterable[str], *, source: str) -> None:
    """
    Refuse a model that no server could read a prompt for.

    Args:
        names: Files that were selected.
        source: For messages.

    Raises:
        SourceInvalid: `source.no-tokenizer`.
    """
    present = set(names)
    if any(need <= present for need in _TOKENIZERS):
        return
    first = join_words([" + ".join(sorted(need)) for need in _TOKENIZERS[:3]])
    raise SourceInvalid(
        f"`{source}` has no tokenizer: none of {first} is there",
        code="source.no-tokenizer",
        hints=("copy `tokenizer.json` of the base model beside `config.json`",),
    )


def select_files(
    names: Iterable[str], *, source: str, indexed: Collection[str] | None
) -> Selection:
    """
    Choose what is needed of a folder.

    Args:
        names: Every file of the model, relative to it.
        source: For messages.
        indexed: Files that the weight index names, or None without an index.

    Raises:
        SourceInvalid: Weights or configuration are missing, or the weights are
            pickles.
    """
    names = set(names)
    top = {name for name in names if "/" not in name}
    weights = _select_weights(top, source=source, indexed=indexed)
    if CONFIG not in top:
        hint = "name the folder that holds `config.json` beside the weights"
        if "adapter_config.json" in top:
            hint = "this is an adapter: merge it into its base model first"
        raise SourceInvalid(
            f"`{source}` has no `config.json`",
            code="source.no-config",
            hints=(hint,),
        )
    others = {n for n in top if _TAKEN.fullmatch(n) or _LEGAL.fullmatch(n)}
    if indexed is not None:
        others.add(INDEX)
    if MODULES in top:
        others |= {MODULES, *(n for n in names if SENTENCE_FILE.fullmatch(n))}
    return Selection(
        weights=tuple(sorted(weights)),
        others=tuple(sorted(others)),
        code=tuple(sorted(n for n in top if n.endswith(".py"))),
    )


def _select_weights(
    top: set[str], *, source: str, indexed: Collection[str] | None
) -> set[str]:
    if indexed is not None:
        missing = sorted(set(indexed) - top)
        if missing:
            raise SourceInvalid(
                f"`{source}` lacks {len(missing)} of the {len(set(indexed))} weight"
                f" files that `{INDEX}` names, first `{missing[0]}`",
                code="source.no-weights",
                hints=("fetch the missing files, or remove a stale index",),
            )
        return set(indexed)
    if "model.safetensors" in top:
        return {"model.safetensors"}
    found = {n for n in top if n.endswith(".safetensors")}
    found -= {"adapter_model.safetensors"}
    if len(found) == 1:
        return found
    if found:
        raise SourceInvalid(
            f"`{source}` has {len(found)} safetensors files and no `{INDEX}` that says"
            " which belong together",
            code="source.no-weights",
            hints=(f"add `{INDEX}`, or keep one `model.safetensors`",),
        )
    pickles = sorted(n for n in top if n.endswith(_PICKLES))
    if pickles:
        more = f" and {len(pickles) - 1} more" if len(pickles) > 1 else ""
        raise SourceInvalid(
            f"`{source}` has only pickled weights (`{pickles[0]}`{more}); a pickle can"
            " run code and is never opened",
            code="source.pickle-only",
            hints=(
                (
                    "name a revision with safetensors, or load the model once where you"
                    " trust it and save it with `save_pretrained(folder)`"
                ),
            ),
        )
    raise SourceInvalid(
        f"`{source}` has no weights: no `model.safetensors` is there",
        code="source.no-weights",
        hints=("name the folder that holds the safetensors files",),
    )

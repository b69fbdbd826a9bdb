"""
Token windows for calibration, as the model would be fed.

Documents are tokenized one after another into one stream. A model that expects a
token at the start of every sequence (`<s>`, `<bos>`; gemma's activations are wrong
without it) gets it at the start of every window, and between documents, as it met
them in training; one that expects none gets none. The stream is cut into windows, and
some of them are drawn.

How much is read: until the stream holds `_POOL_TOKENS`, or `_POOL_FACTOR` times what
is drawn if that is more. A data set of many gigabytes costs no more than one of a few
megabytes; what stands behind that in it is not looked at.
"""

from __future__ import annotations

import json
import random
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.digest import digest_bytes
from lmi_build.errors import SourceInvalid
from lmi_build.events import StageNote
from lmi_build.quantizers.calibration import (
    DOCUMENT_SEPARATOR,
    FILES,
    builtin_texts,
    load_tokenizer,
)
from lmi_build.quantizers.calibration_rows import Tally, read_documents
from lmi_build.values.dataset import PYTHON_DOCS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from lmi_build.events import Emit
    from lmi_build.quantizers.calibration_rows import Message, Render
    from lmi_build.spi import Job

# About 4 MB of text, two seconds of tokenizing.
_POOL_TOKENS = 1 << 20
_POOL_FACTOR = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """
    Special tokens around a sequence.

    Args:
        before: Ids that start every sequence; empty for many models.
        after: Ids that end every document.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def read_windows(job: Job, emit: Emit) -> list[list[int]]:
    """
    The token windows that a stage calibrates on.

    Args:
        job: `params["calibration"]` as `calibration_params` made it; the inputs
            `model` and, for a data set of files, `calibration`; `settings` may hold
            what `calibration_settings` said.
        emit: Told what was left out.

    Returns:
        `num_samples` windows of `max_seq_len` token ids, in the order of the text.

    Raises:
        SourceInvalid: The text or the tokenizer is broken, missing or too short.
        ToolMissing: `calibration.parquet`.
    """
    params: Any = job.params["calibration"]
    model = job.inputs["model"]
    render = chat_renderer(model) if params["chat_template"] else None
    tokenizer = load_tokenizer(model)
    marks = sequence_marks(tokenizer, model)
    tally = Tally()
    num_samples, max_seq_len = params["num_samples"], params["max_seq_len"]
    pool = max(_POOL_TOKENS, _POOL_FACTOR * num_samples * max_seq_len)
    stream = tokenize(
        _texts(job, tally, render),
        tokenizer,
        # A rendered chat holds its special tokens already.
        Marks() if render is not None else marks,
        num_tokens=pool,
    )
    _tell(job, emit, tally, num_tokens=len(stream), pool=pool)
    if not stream:
        raise SourceInvalid(
            f"the calibration data set holds no text ({tally.num_empty} empty rows)",
            code="calibration.empty",
            hints=(f"fill the file, or use `{PYTHON_DOCS}`",),
        )
    return pack(
        stream,
        num_samples=num_samples,
        max_seq_len=max_seq_len,
        seed=params["seed"],
        before=marks.before,
    )


def _texts(job: Job, tally: Tally, render: Render | None) -> Iterable[str]:
    params: Any = job.params["calibration"]
    if params["format"] != FILES:
        return _checked_builtin(params["digest"], render)
    folder = job.inputs["calibration"]
    stored: list[str] = list(params["files"])
    names: Any = job.settings.get("calibration_names") or stored
    files = [
        (folder / file, str(name)) for file, name in zip(stored, names, strict=True)
    ]
    return read_documents(files, tally, render=render)


def _checked_builtin(digest: str, render: Render | None) -> list[str]:
    texts = builtin_texts(held_out=False)
    found = digest_bytes(DOCUMENT_SEPARATOR.join(texts).encode())
    if found != digest:
        raise SourceInvalid(
            f"the built-in text is not the one of the plan: {found[:19]}...,"
            f" planned {digest[:19]}...",
            code="calibration.moved",
            hints=("build with the same Python version as the plan", "plan again"),
        )
    if render is None:
        return list(texts)
    return [render([{"role": "user", "content": text}]) for text in texts]


def _tell(job: Job, emit: Emit, tally: Tally, *, num_tokens: int, pool: int) -> None:
    if tally.num_empty:
        emit(
            StageNote(
                stage=job.stage,
                level="warning",
                code="calibration.empty-rows",
                message=f"{tally.num_empty:,} rows without text were left out,"
                f" {tally.num_documents:,} have text",
            )
        )
    if num_tokens >= pool:
        emit(
            StageNote(
                stage=job.stage,
                level="info",
                code="calibration.pool",
                message="the calibration windows are drawn from the first"
                f" {pool:,} tokens of the data set",
            )
        )


def sequence_marks(tokenizer: Any, model: Path) -> Marks:
    """
    What the tokenizer puts around a sequence.

    `tokenizer.json` says it by its post-processor; an explicit `add_bos_token` in
    `tokenizer_config.json` wins, as it does in transformers.
    """
    encoding = tokenizer.encode("a")
    ids, special = list(encoding.ids), list(encoding.special_tokens_mask)
    if 0 not in special:
        return Marks(before=tuple(ids))
    first, last = special.index(0), len(special) - special[::-1].index(0)
    before, after = tuple(ids[:first]), tuple(ids[last:])
    config = _tokenizer_config(model)
    named = config.get("bos_token")
    text = named.get("content") if isinstance(named, dict) else named
    bos = tokenizer.token_to_id(text) if isinstance(text, str) else None
    wanted = config.get("add_bos_token")
    if bos is not None and wanted is True and bos not in before:
        before = (bos, *before)
    elif bos is not None and wanted is False:
        before = tuple(token for token in before if token != bos)
    return Marks(before=before, after=after)


def _tokenizer_config(model: Path) -> Mapping[str, Any]:
    path = model / "tokenizer_config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SourceInvalid(
            f"`{path}` cannot be read: {error}",
            code="calibration.tokenizer",
            hints=("fetch the model again",),
        ) from error
    return config if isinstance(config, dict) else {}


def chat_renderer(model: Path) -> Render:
    """
    The model's own chat template, as transformers renders it.

    Raises:
        SourceInvalid: `calibration.chat-template`: there is none, or, when called, it
            refuses a chat.
    """
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    if not tokenizer.chat_template:
        raise SourceInvalid(
            f"`{model}` has no chat template",
            code="calibration.chat-template",
            hints=("set `quantize.calibration.chat_template: false`",),
        )

    def render(messages: Sequence[Message]) -> str:
        try:
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False))
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise SourceInvalid(
                f"the model's chat template refuses a chat of the roles {roles}:"
                f" {error}",
                code="calibration.chat-template",
                hints=(
                    "keep to the roles that the model knows",
                    "or set `quantize.calibration.chat_template: false`",
                ),
            ) from error

    return render


def tokenize(
    texts: Iterable[str], tokenizer: Any, marks: Marks, *, num_tokens: int
) -> array[int]:
    """
    One stream of the first `num_tokens` tokens of some documents.

    Args:
        texts: Documents; no more are taken than needed.
        tokenizer: Of the model.
        marks: Stand around each document.
        num_tokens: Where the stream is cut.
    """
    stream = array("I")
    for text in texts:
        stream.extend(marks.before)
        stream.extend(tokenizer.encode(text, add_special_tokens=False).ids)
        stream.extend(marks.after)
        if len(stream) >= num_tokens:
            break
    return stream[:num_tokens]


def pack(
    stream: Sequence[int],
    *,
    num_samples: int,
    max_seq_len: int,
    seed: int,
    before: Sequence[int] = (),
) -> list[list[int]]:
    """
    Cut a token stream into windows and draw some of them.

    A window is `before` and then a piece of the stream; where the piece starts with
    `before` itself, because a document does, it is not doubled.

    Args:
        stream: The whole data set, document after document.
        num_samples: Windows to draw.
        max_seq_len: Tokens of a window.
        seed: Of the draw.
        before: Ids that start every window.

    Returns:
        The windows drawn, in the order of the text.

    Raises:
        SourceInvalid: `calibration.too-short`, with both numbers.
    """
    lead = list(before)
    step = max_seq_len - len(lead)
    if step < 1:
        raise SourceInvalid(
            f"calibration windows of {max_seq_len} tokens hold no text: the model"
            f" starts every sequence with {len(lead)} of its own",
            code="calibration.too-short",
            hints=("set `quantize.calibration.max_seq_len` to 512",),
        )
    # A piece that starts with `before` takes as many tokens more.
    num_windows = max(0, (len(stream) - len(lead)) // step)
    if num_windows < num_samples:
        raise _too_short(len(stream), num_samples, max_seq_len, num_windows)
    drawn = sorted(random.Random(seed).sample(range(num_windows), num_samples))  # noqa: S311
    windows = []
    for index in drawn:
        piece = list(stream[index * step : index * step + max_seq_len])
        doubled = piece[: len(lead)] == lead
        windows.append(piece if doubled else lead + piece[:step])
    return windows


def _too_short(
    num_tokens: int, num_samples: int, max_seq_len: int, num_windows: int
) -> SourceInvalid:
    longest = num_tokens // num_samples
    hints = ["use more text"]
    if longest:
        hints.insert(0, f"lower `quantize.calibration.max_seq_len` to {longest}")
    if num_windows:
        hints.insert(0, f"lower `quantize.calibration.num_samples` to {num_windows}")
    return SourceInvalid(
        f"calibration needs {num_samples} x {max_seq_len} = "
        f"{num_samples * max_seq_len} tokens, the data set has {num_tokens}",
        code="calibration.too-short",
        hints=tuple(hints),
    )

"""What a loaded engine must do: tokenize, answer, keep its bounds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.errors import VerifyFailed
from lmi_build.quantizers.calibration import check_vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

    from lmi_build.digest import JSONValue
    from lmi_build.package.engine import Loaded

# Things that tokenizers are known to disagree about: leading and doubled spaces,
# line ends, digits, accents in both normal forms, scripts without spaces, right to
# left, emoji made of several code points, code.
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  leading, doubled  and trailing spaces  ",
    "tabs\tand\nnewlines\r\n\n\nmany",
    "3.14159 1,000,000 0x1F600 v2.0.1",
    "na\u00efve caf\u00e9 and nai\u0308ve cafe\u0301",
    "\u4eca\u65e5\u306f\u3044\u3044\u5929\u6c17\u3067\u3059\u306d",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\U0001f469\u200d\U0001f4bb \U0001f1eb\U0001f1f7 \u2764\ufe0f",
    "def f(x):\n    return {'a': [x ** 2 for _ in range(3)]}\n",
    "\u00a0non-breaking\u200bzero width",
)


def check_tokenizer(loaded: Loaded, model: Path, root: Path) -> dict[str, JSONValue]:
    """
    Compare the engine's tokenizer with the model's own.

    Raises:
        VerifyFailed: `verify.tokenizer-differs`, with the text and both results.
    """
    from tokenizers import Tokenizer

    source = model / "tokenizer.json"
    oracle = Tokenizer.from_file(
        str(source if source.is_file() else root / source.name)
    )
    texts = [*TEXTS, *_special_texts(oracle)]
    for text in texts:
        wanted = oracle.encode(text, add_special_tokens=True).ids
        found = list(loaded.engine.encode(text))
        if found != wanted:
            _differs(f"{text!r} becomes {found}, the model's own gives {wanted}")
        shown = oracle.decode(wanted, skip_special_tokens=True)
        back = loaded.engine.decode(wanted)
        if back != shown:
            _differs(f"{wanted} becomes {back!r}, the model's own gives {shown!r}")
    return {"num_texts": len(texts), "identical": True}


def check_windows(windows: Iterable[Sequence[int]], model: Path) -> None:
    """
    Refuse a tokenizer of another model before an engine runs on its tokens.

    Args:
        windows: Token ids of the texts that will be asked about.
        model: The model's folder; its `config.json` has the embedding's rows.

    Raises:
        SourceInvalid: `calibration.tokenizer`, with token and rows.
    """
    config = json.loads((model / "config.json").read_bytes())
    num_rows = (config.get("text_config") or config).get("vocab_size")
    if isinstance(num_rows, int):
        check_vocabulary(max(max(ids) for ids in windows), num_rows)


def _special_texts(oracle: Tokenizer) -> Iterator[str]:
    """Every special token, alone and inside a sentence."""
    specials = [
        token.content
        for token in oracle.get_added_tokens_decoder().values()
        if token.special
    ]
    for token in specials[:16]:
        yield token
        yield f"before {token} after"


def _differs(what: str) -> None:
    raise VerifyFailed(
        f"the engine's tokenizer differs from the model's: {what}",
        code="verify.tokenizer-differs",
        hints=("rebuild the model's tokenizer.json with a current `transformers`",),
    )


def answer(
    loaded: Loaded, prompts: Sequence[str], *, max_new_tokens: int, chat: bool
) -> list[JSONValue]:
    """
    Answer each prompt greedily.

    Raises:
        VerifyFailed: `verify.chat-template`, `verify.prompt-too-long`,
            `verify.no-answer`.
    """
    rows: list[JSONValue] = []
    for prompt in prompts:
        engine = loaded.engine
        message = {"role": "user", "content": prompt}
        try:
            text = engine.apply_chat_template([message]) if chat else prompt
        except loaded.invalid_request as error:
            raise VerifyFailed(
                f"prompt {prompt!r} of `verify.prompts`: {error}",
                code="verify.chat-template",
                hints=("correct the model's chat template, or remove it",),
            ) from error
        ids = engine.encode(text)
        try:
            steps = list(engine.stream(ids, {"max_new_tokens": max_new_tokens}))
        except loaded.bound_exceeded as error:
            raise VerifyFailed(
                f"prompt {prompt!r} of `verify.prompts` is refused: {error}",
                code="verify.prompt-too-long",
                hints=("shorten it, or raise `bounds.max_input_len`",),
            ) from error
        if not steps or steps[-1].finish_reason is None:
            raise VerifyFailed(
                f"prompt {prompt!r} gave {len(steps)} tokens and no finish reason",
                code="verify.no-answer",
                hints=("build it again; if it stays, report it with the log",),
            )
        rows.append(
            {
                "prompt": prompt,
                "prompt_len": len(ids),
                "text": "".join(step.text for step in steps),
                "token_ids": [step.token_id for step in steps],
                "finish_reason": steps[-1].finish_reason,
            }
        )
    return rows


def check_bounds(loaded: Loaded, bounds: Mapping[str, Any]) -> dict[str, JSONValue]:
    """
    Try each bound exactly, and one over it.

    Raises:
        VerifyFailed: `verify.bound-not-kept`.
    """
    longest, most = int(bounds["max_input_len"]), int(bounds["max_output_len"])
    filler = loaded.engine.encode("word")[-1]
    accepted = _refusal(loaded, [filler] * longest, max_new_tokens=1)
    if accepted is not None:
        _not_kept(
            f"a prompt of {longest} tokens (max_input_len) is refused: {accepted}"
        )
    if _refusal(loaded, [filler] * (longest + 1), max_new_tokens=1) is None:
        _not_kept(
            f"a prompt of {longest + 1} tokens is accepted, the bound is {longest}"
        )
    if _refusal(loaded, [filler], max_new_tokens=most + 1) is None:
        _not_kept(f"{most + 1} new tokens are accepted, the bound is {most}")
    return {
        "max_input_len": {"accepted": longest, "refused": longest + 1},
        "max_output_len": {"refused": most + 1},
    }


def _refusal(loaded: Loaded, ids: list[int], *, max_new_tokens: int) -> str | None:
    """What the engine says against a request, or None when it generates."""
    try:
        steps = loaded.engine.stream(ids, {"max_new_tokens": max_new_tokens})
        first = next(iter(steps), None)
    except loaded.bound_exceeded as error:
        return str(error) or type(error).__name__
    if first is None:
        _not_kept(f"a prompt of {len(ids)} tokens gives no token at all")
    return None


def _not_kept(what: str) -> None:
    raise VerifyFailed(
        what,
        code="verify.bound-not-kept",
        hints=("build it again; if it stays, report it with the log",),
    )

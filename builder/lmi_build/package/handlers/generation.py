"""
What every text handler has in common: requests, sampling, text, and LMI's answers.

`model.py` of an artifact is one file: the handler with this module in the place of
its import. So nothing here may need more than numpy and Python 3.9.

The bounds are promises: a request over one is refused with status 413 or 400, never
cut. Requests and answers have the form of LMI's own handlers.

Source: djl-serving `serving/docs/lmi/user_guides/lmi_input_output_schema.md` and
`engines/python/setup/djl_python/{inputs,outputs,service_loader}.py`.
"""

from __future__ import annotations

import codecs
import difflib
import json
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmi_build.package.handlers.batching import Scheduler  # noqa: TC001 - inlined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

SETTINGS_NAME = "lmi_build.json"
BOUND_NAMES = ("max_input_len", "max_output_len", "max_seq_len", "max_batch_size")
DEFAULT_NEW_TOKENS = 30  # LMI's
MAX_SEED = (1 << 63) - 1
MAX_STOPS = 16
_CANDIDATES = 256  # sorted first when a token is drawn
JSONLINES = "application/jsonlines"

# Parameters of LMI's engines that this one does not have, with the values at which
# they change nothing. Other values are refused instead of being ignored.
NEUTRAL = {
    "best_of": (1,),
    "decoder_input_details": (False,),
    "early_stopping": (False,),
    "frequency_penalty": (0,),
    "ignore_eos_token": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logprobs": (0, 1),
    "min_p": (0,),
    "n": (1,),
    "num_beams": (1,),
    "presence_penalty": (0,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
}


class BoundExceeded(ValueError):
    """The request asks for more than the artifact promises; says both numbers."""


class InvalidRequest(ValueError):
    """The request is not understood; names the field."""


class EngineBroken(RuntimeError):
    """The artifact's files do not make an engine."""


class EngineMisfit(EngineBroken):
    """
    The engine is whole, and this machine is another than it was compiled for.

    Args:
        message: What it is for and what is here.
        fix: What to do.
    """

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(f"{message}: {fix}")
        self.message = message
        self.fix = fix


@dataclass(frozen=True)
class Step:
    """
    One generated token.

    Args:
        token_id: Its id.
        text: What it adds to the answer; empty while a character or a possible stop
            sequence is incomplete.
        logprob: Natural logarithm of its probability, before any sampling option.
        finish_reason: `length`, `eos_token` or `stop_sequence` on the last step.
    """

    token_id: int
    text: str
    logprob: float
    finish_reason: str | None


@dataclass(frozen=True)
class Parameters:
    """
    Generation parameters after they were checked; LMI's names and defaults.

    Args:
        max_new_tokens: Most tokens of the answer.
        do_sample: Draw instead of taking the most likely token.
        temperature: Divides the logits when sampling.
        top_k: Candidates kept, 0 for all.
        top_p: Share of the probability kept.
        repetition_penalty: Above 1 makes tokens seen before less likely.
        seed: Of the draw; None takes a fresh one.
        stop_sequences: Texts that end the answer and are not part of it.
        return_full_text: Put the prompt before the answer.
        details: Tell tokens and the reason of the end.
    """

    max_new_tokens: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int | None
    stop_sequences: tuple[str, ...]
    return_full_text: bool
    details: bool


def read_parameters(document: Mapping[str, Any], max_output_len: int) -> Parameters:
    """
    Check the `parameters` of a request.

    Raises:
        InvalidRequest: A parameter is unknown, or has a wrong value.
        BoundExceeded: More new tokens are asked for than `max_output_len`.
    """
    _refuse_unknown(document)
    wanted = _number(document, "max_new_tokens", int, low=1)
    if wanted is not None and wanted > max_output_len:
        raise BoundExceeded(
            f"max_new_tokens is {wanted}, this artifact gives at most"
            f" max_output_len = {max_output_len}"
        )
    temperature = _number(document, "temperature", float, low=0.0)
    top_k = _number(document, "top_k", int, low=-1)
    top_p = _number(document, "top_p", float, low=0.0, high=1.0)
    # LMI's rule since 0.32: sampling options switch sampling on by themselves.
    shaped = temperature not in {None, 1.0} or top_k not in {None, 0, -1}
    inferred = shaped or top_p not in {None, 1.0}
    do_sample = _flag(document, "do_sample", default=inferred)
    return Parameters(
        max_new_tokens=wanted or min(DEFAULT_NEW_TOKENS, max_output_len),
        do_sample=do_sample and temperature != 0.0,
        temperature=1.0 if temperature is None else temperature,
        top_k=max(top_k or 0, 0),
        top_p=1.0 if top_p is None else top_p,
        repetition_penalty=_penalty(document),
        seed=_number(document, "seed", int, low=0, high=MAX_SEED),
        stop_sequences=_stops(document),
        return_full_text=_flag(document, "return_full_text", default=False),
        details=_flag(document, "details", default=False),
    )


def _refuse_unknown(document: Mapping[str, Any]) -> None:
    known = {*Parameters.__dataclass_fields__, "stop", *NEUTRAL}
    for name, value in document.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), sorted(known), n=1)
            hint = f", did you mean `{near[0]}`?" if near else ""
            raise InvalidRequest(f"unknown parameter `{name}`{hint}")
        if name in NEUTRAL and value is not None and value not in NEUTRAL[name]:
            raise InvalidRequest(
                f"`{name}` is {value!r}, which this engine cannot do; remove it"
            )


def _number(
    document: Mapping[str, Any],
    name: str,
    kind: type,
    *,
    low: float,
    high: float | None = None,
) -> Any:
    value = document.get(name)
    if value is None:
        return None
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole and not (kind is float and isinstance(value, float)):
        what = "a whole number" if kind is int else "a number"
        raise InvalidRequest(f"`{name}` is {value!r}, it must be {what}")
    # A not-a-number fails both comparisons.
    if not value >= low or (high is not None and not value <= high):
        upper = "or more" if high is None else f"to {high}"
        raise InvalidRequest(f"`{name}` is {value}, it must be {low} {upper}")
    if kind is float and not np.isfinite(value):
        raise InvalidRequest(f"`{name}` is {value}, it must be finite")
    return kind(value)


def _flag(document: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = document.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidRequest(f"`{name}` is {value!r}, it must be true or false")
    return value


def _penalty(document: Mapping[str, Any]) -> float:
    value = _number(document, "repetition_penalty", float, low=0.0)
    if value == 0.0:
        raise InvalidRequest("`repetition_penalty` is 0.0, it must be more than 0")
    return 1.0 if value is None else float(value)


def _stops(document: Mapping[str, Any]) -> tuple[str, ...]:
    if document.get("stop") is not None and document.get("stop_sequences") is not None:
        raise InvalidRequest("`stop` and `stop_sequences` are the same: give one")
    name = "stop" if document.get("stop") is not None else "stop_sequences"
    value = document.get(name)
    if value is None:
        return ()
    rows = [value] if isinstance(value, str) else value
    if not isinstance(rows, list) or not all(isinstance(row, str) for row in rows):
        raise InvalidRequest(f"`{name}` must be a list of strings")
    if not all(rows):
        raise InvalidRequest(f"`{name}` has an empty string, which would stop at once")
    if len(rows) > MAX_STOPS:
        raise InvalidRequest(f"`{name}` has {len(rows)} entries, at most {MAX_STOPS}")
    return tuple(rows)


def byte_alphabet() -> dict[str, int]:
    """
    The printable characters that byte-level tokenizers write for bytes.

    Source: Radford et al. 2019, `bytes_to_unicode` of GPT-2's encoder: printable
    Latin-1 stands for itself, the other bytes for 256 and up.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    alphabet = {chr(byte): byte for byte in plain}
    alphabet.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return alphabet


class TokenBytes:
    """
    What each token stands for, in bytes.

    The runtime's own decoder drops what follows bytes that are no UTF-8, so text is
    put together here.

    Args:
        document: `tokenizer.json`, with a byte-level decoder or one with byte
            fallback; these two make up what today's decoders use.

    Raises:
        EngineBroken: It has another decoder.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        kinds = {step.get("type"): step for step in _decoder_steps(document)}
        vocabulary = document["model"]["vocab"]
        added = document.get("added_tokens") or []
        size = 1 + max([*vocabulary.values(), *(row["id"] for row in added)])
        self._table = [b""] * size
        self.strips_first_space = "Strip" in kinds
        if "ByteLevel" in kinds:
            alphabet = byte_alphabet()
            for token, index in vocabulary.items():
                self._table[index] = _from_alphabet(token, alphabet)
        elif "ByteFallback" in kinds:
            for token, index in vocabulary.items():
                self._table[index] = _from_fallback(token)
        else:
            names = ", ".join(sorted(map(str, kinds))) or "none"
            raise EngineBroken(f"`tokenizer.json` has an unknown decoder: {names}")
        for row in added:
            self._table[row["id"]] = b"" if row["special"] else row["content"].encode()
        self.specials = {row["id"]: row["content"] for row in added if row["special"]}

    def __getitem__(self, token_id: int) -> bytes:
        # Engines pad their vocabulary; the padding has no text.
        return self._table[token_id] if token_id < len(self._table) else b""


def _decoder_steps(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    decoder = document.get("decoder") or {}
    steps = decoder.get("decoders") if decoder.get("type") == "Sequence" else [decoder]
    return list(steps or [])


def _from_alphabet(token: str, alphabet: Mapping[str, int]) -> bytes:
    try:
        return bytes(alphabet[char] for char in token)
    except KeyError:
        return token.encode()


def _from_fallback(token: str) -> bytes:
    # `<0x0A>` is one byte; a low line stands for a space.
    if len(token) == len("<0x0A>") and token.startswith("<0x") and token[-1] == ">":
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


class Detokenizer:
    """
    Turns tokens into text as they come, whole characters only.

    A token may end inside a character; its bytes are held back until the character
    is complete, or until it is clear that it never will be.

    Args:
        table: What each token stands for.
    """

    def __init__(self, table: TokenBytes) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = table.strips_first_space

    def push(self, token_id: int) -> str:
        """Text that this token completes; may be empty."""
        return self._stripped(self._decoder.decode(self._table[token_id]))

    def flush(self) -> str:
        """An unfinished character, marked as such; mostly nothing."""
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if not text or not self._strip:
            return text
        self._strip = False
        return text.removeprefix(" ")


class StopWatch:
    """
    Finds stop sequences in text that comes in pieces.

    Text that may be the beginning of a stop sequence is held back until it is clear.

    Args:
        stops: Texts that end the answer.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that may be shown, and whether a stop sequence was found."""
        self._held += text
        places = [self._held.find(stop) for stop in self._stops]
        found = [place for place in places if place >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def flush(self) -> str:
        """What was held back for nothing."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        for length in range(longest, 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0


class Sampler:
    """
    Picks the next token.

    Args:
        parameters: Checked ones.
        prompt_ids: For the repetition penalty.
    """

    def __init__(self, parameters: Parameters, prompt_ids: Sequence[int]) -> None:
        self._parameters = parameters
        self._seen = set(prompt_ids)
        self._random = np.random.default_rng(parameters.seed)

    def pick(self, logits: np.ndarray) -> tuple[int, float]:
        """
        The next token and its log probability.

        Args:
            logits: float32 [V].
        """
        scores = self._penalized(logits)
        token_id = self._draw(scores) if self._parameters.do_sample else None
        if token_id is None:
            token_id = int(scores.argmax())
        self._seen.add(token_id)
        top = logits.max()
        logprob = logits[token_id] - top - np.log(np.exp(logits - top).sum())
        return token_id, float(logprob)

    def _penalized(self, logits: np.ndarray) -> np.ndarray:
        """Source: Keskar et al. 2019 (CTRL), section 4.1, as transformers has it."""
        penalty = self._parameters.repetition_penalty
        if penalty == 1.0:
            return logits
        scores = logits.copy()
        seen = np.fromiter(self._seen, np.int64, len(self._seen))
        values = scores[seen]
        scores[seen] = np.where(values > 0, values / penalty, values * penalty)
        return scores

    def _draw(self, scores: np.ndarray) -> int:
        parameters = self._parameters
        scaled = scores.astype(np.float64) / parameters.temperature
        share = self._random.random()
        if parameters.top_k:
            order = _best(scaled, parameters.top_k)[: parameters.top_k]
            weights = np.exp(scaled[order] - scaled[order[0]])
            return self._pick(order, np.cumsum(weights / weights.sum()), share)
        weights = np.exp(scaled - scaled.max())
        weights /= weights.sum()
        # Mostly a few candidates hold what is needed, and sorting all takes longest.
        needed = parameters.top_p if parameters.top_p < 1.0 else share
        for count in (_CANDIDATES, len(scaled)):
            order = _best(scaled, count)
            cumulative = np.cumsum(weights[order])
            if cumulative[-1] > needed:
                break
        if parameters.top_p < 1.0:
            return self._pick(order, cumulative, share)
        place = int(np.searchsorted(cumulative, share, side="right"))
        return int(order[min(place, len(order) - 1)])

    def _pick(self, order: np.ndarray, cumulative: np.ndarray, share: float) -> int:
        """A candidate of those that hold `top_p`, the best first."""
        if self._parameters.top_p < 1.0:
            # The first candidate that reaches the share is the last one kept.
            keep = int(np.searchsorted(cumulative, self._parameters.top_p)) + 1
            order, cumulative = order[:keep], cumulative[:keep]
        place = int(np.searchsorted(cumulative, share * cumulative[-1], side="right"))
        return int(order[min(place, len(order) - 1)])


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """
    Places of the highest scores, the highest first, `count` or those equal to its last.

    Equal scores keep the order of their places, on every machine.
    """
    if count < len(scores):
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        near = np.flatnonzero(scores >= least)
    else:
        near = np.arange(len(scores))
    return near[np.argsort(-scores[near], kind="stable")]


class Writer:
    """
    Turns logits into steps, until the answer ends.

    Args:
        wanted: Parameters, checked.
        prompt_ids: For the repetition penalty.
        token_bytes: What tokens stand for.
        eos_token_ids: They end the answer.
    """

    def __init__(
        self,
        wanted: Parameters,
        prompt_ids: Sequence[int],
        token_bytes: TokenBytes,
        eos_token_ids: frozenset[int],
    ) -> None:
        self._sampler = Sampler(wanted, prompt_ids)
        self._detokenizer = Detokenizer(token_bytes)
        self._watch = StopWatch(wanted.stop_sequences)
        self._eos_token_ids = eos_token_ids
        self._most = wanted.max_new_tokens
        self._count = 0

    def write(self, logits: np.ndarray) -> Step:
        """The next step; its `finish_reason` says whether it is the last."""
        self._count += 1
        token_id, logprob = self._sampler.pick(logits)
        ended = token_id in self._eos_token_ids
        text = "" if ended else self._detokenizer.push(token_id)
        shown, stopped = self._watch.push(text)
        last = ended or self._count == self._most
        if last and not stopped:
            rest, stopped = self._watch.push(self._detokenizer.flush())
            shown += rest
            shown += "" if stopped else self._watch.flush()
        reason = None
        if stopped:
            reason = "stop_sequence"
        elif last:
            reason = "eos_token" if ended else "length"
        return Step(token_id, shown, logprob, reason)


class Text:
    """
    One prompt and its answer so far; each is itself alone.

    Args:
        inputs: The prompt as it came; empty where it came as tokens.
        prompt_ids: Its tokens.
        wanted: Parameters, checked.
        writer: Makes the steps.
    """

    def __init__(
        self,
        inputs: str,
        prompt_ids: Sequence[int],
        wanted: Parameters,
        writer: Writer,
    ) -> None:
        self.ids = list(prompt_ids)
        self.steps: list[Step] = []
        self._inputs = inputs
        self._wanted = wanted
        self._writer = writer

    @property
    def ended(self) -> bool:
        """Whether the last step has been made."""
        return bool(self.steps) and self.steps[-1].finish_reason is not None

    def write(self, logits: np.ndarray) -> Step:
        """The next step; its token is now part of the text."""
        step = self._writer.write(logits)
        self.steps.append(step)
        self.ids.append(step.token_id)
        return step

    def line(self, place: int = -1) -> dict[str, Any]:
        """A step in LMI's streamed answer; that of the last has the whole text."""
        step = self.steps[place]
        found: dict[str, Any] = {"token": _token(step)}
        if step.finish_reason is not None:
            found.update(self._result(with_tokens=False))
        return found

    def result(self) -> dict[str, Any]:
        """LMI's answer object."""
        return self._result(with_tokens=True)

    def _result(self, *, with_tokens: bool) -> dict[str, Any]:
        wanted = self._wanted
        before = self._inputs if wanted.return_full_text else ""
        text = "".join(step.text for step in self.steps)
        result: dict[str, Any] = {"generated_text": before + text}
        if wanted.details:
            result["details"] = {
                "finish_reason": self.steps[-1].finish_reason,
                "generated_tokens": len(self.steps),
                "inputs": self._inputs,
            }
            if with_tokens:
                result["details"]["tokens"] = [_token(step) for step in self.steps]
        return result


class TextEngine(ABC):
    """
    What answers requests, whatever computes the logits.

    An engine sets `bounds`, `scheduler`, `_token_bytes` and `_eos_token_ids`, and has
    `encode`. Calls from several threads are safe; whoever drives `scheduler` itself
    must be the only one who generates.
    """

    bounds: dict[str, int]
    scheduler: Scheduler
    _token_bytes: TokenBytes
    _eos_token_ids: frozenset[int]

    def __init__(self) -> None:
        # Around everything that computes.
        self._lock = threading.Lock()

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        detokenizer = Detokenizer(self._token_bytes)
        pieces = [detokenizer.push(int(token)) for token in ids]
        return "".join(pieces) + detokenizer.flush()

    def begin(self, prompt_ids: Sequence[int], parameters: Mapping[str, Any]) -> Text:
        """
        Check a request whose prompt is tokens.

        Raises:
            BoundExceeded: The prompt or the answer asked for is too long.
            InvalidRequest: A parameter is wrong, or the prompt is empty.
        """
        wanted = read_parameters(parameters, self.bounds["max_output_len"])
        return self._text("", prompt_ids, wanted)

    def begin_all(
        self, inputs: str | Sequence[str], parameters: Mapping[str, Any]
    ) -> list[Text]:
        """
        Check a request with one prompt or several.

        Raises:
            BoundExceeded: A prompt, the answer or the list is too long.
            InvalidRequest: Something is wrong with the request.
        """
        wanted = read_parameters(parameters, self.bounds["max_output_len"])
        rows = [inputs] if isinstance(inputs, str) else self._check_batch(inputs)
        return [self._text(row, self.encode(row), wanted) for row in rows]

    def stream(
        self, prompt_ids: Sequence[int], parameters: Mapping[str, Any]
    ) -> Iterator[Step]:
        """
        Generate token by token; the request is checked when this is called.

        Raises:
            BoundExceeded: As `begin`.
            InvalidRequest: As `begin`.
        """
        return self._steps(self.begin(prompt_ids, parameters))

    def generate(
        self, inputs: str | Sequence[str], parameters: Mapping[str, Any]
    ) -> Any:
        """
        Answer one prompt, or several side by side.

        Returns:
            LMI's answer object for a string, a list of them for a list.

        Raises:
            BoundExceeded: As `begin_all`.
            InvalidRequest: As `begin_all`.
        """
        texts = self.begin_all(inputs, parameters)
        self.finish(texts)
        found = [text.result() for text in texts]
        return found[0] if isinstance(inputs, str) else found

    def lines(
        self, inputs: str, parameters: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """
        LMI's streamed answer: one object for each token; the last has the whole text.

        Raises:
            BoundExceeded: As `begin_all`.
            InvalidRequest: As `begin_all`.
        """
        (text,) = self.begin_all(inputs, parameters)
        return (text.line() for _ in self._steps(text))

    def finish(self, texts: Sequence[Text]) -> None:
        """Generate for texts that were checked, as many at once as there are slots."""
        with self._lock:
            for text in texts:
                self.scheduler.add(text)
        try:
            # Turns of other threads move these texts on, too.
            while not all(text.ended for text in texts):
                with self._lock:
                    if not all(text.ended for text in texts):
                        self.scheduler.turn()
        finally:
            with self._lock:
                for text in texts:
                    self.scheduler.remove(text)

    def _steps(self, text: Text) -> Iterator[Step]:
        try:
            while not text.ended:
                with self._lock:
                    step = self.scheduler.advance(text)
                yield step
        finally:
            with self._lock:
                self.scheduler.remove(text)

    def _text(self, inputs: str, ids: Sequence[int], wanted: Parameters) -> Text:
        self._check_prompt(ids)
        writer = Writer(wanted, ids, self._token_bytes, self._eos_token_ids)
        return Text(inputs, ids, wanted, writer)

    def _check_prompt(self, ids: Sequence[int]) -> None:
        longest = self.bounds["max_input_len"]
        if not len(ids):
            raise InvalidRequest("`inputs` has no tokens")
        if len(ids) > longest:
            raise BoundExceeded(
                f"the prompt has {len(ids)} tokens, this artifact takes at most"
                f" max_input_len = {longest}"
            )

    def _check_batch(self, inputs: Sequence[str]) -> list[str]:
        rows = list(inputs) if isinstance(inputs, (list, tuple)) else None
        if not rows or not all(isinstance(row, str) for row in rows):
            raise InvalidRequest("`inputs` must be a string or a list of strings")
        most = self.bounds["max_batch_size"]
        if len(rows) > most:
            raise BoundExceeded(
                f"`inputs` has {len(rows)} prompts, this artifact takes at most"
                f" max_batch_size = {most}"
            )
        return rows


def read_json(path: Path) -> dict[str, Any]:
    """
    A JSON object.

    Raises:
        EngineBroken: It cannot be read.
    """
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise EngineBroken(f"`{path.name}` cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise EngineBroken(f"`{path.name}` is not a JSON object")
    return document


def read_bounds(settings: Mapping[str, Any]) -> dict[str, int]:
    """
    The bounds of an artifact.

    Raises:
        EngineBroken: One is missing.
    """
    bounds = settings.get("bounds")
    if not isinstance(bounds, dict):
        raise EngineBroken(f"`{SETTINGS_NAME}` has no bounds")
    for name in BOUND_NAMES:
        if not isinstance(bounds.get(name), int) or bounds[name] < 1:
            raise EngineBroken(f"`{SETTINGS_NAME}` has no bound `{name}`")
    return {name: bounds[name] for name in BOUND_NAMES}


def read_tokens(path: Path) -> TokenBytes:
    """
    What the tokens of `tokenizer.json` stand for.

    Raises:
        EngineBroken: It has another form.
    """
    document = read_json(path)
    try:
        return TokenBytes(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineBroken(f"`{path.name}` has another form: {error!r}") from error


def _token(step: Step) -> dict[str, Any]:
    return {"id": step.token_id, "text": step.text, "log_prob": step.logprob}


def read_request(document: Any) -> tuple[Any, dict[str, Any], bool]:
    """
    `inputs`, `parameters` and `stream` of a request's body.

    Raises:
        InvalidRequest: The body has another form.
    """
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object with `inputs`")
    unknown = sorted(set(document) - {"inputs", "parameters", "stream"})
    if unknown:
        raise InvalidRequest(f"unknown field `{unknown[0]}`")
    if "inputs" not in document:
        raise InvalidRequest("`inputs` is missing")
    parameters = document.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise InvalidRequest("`parameters` must be an object")
    parameters = dict(parameters)
    # LMI's clients send `stream` in either place.
    inner = _flag(parameters, "stream", default=False)
    parameters.pop("stream", None)
    stream = _flag(document, "stream", default=inner)
    if stream and not isinstance(document["inputs"], str):
        raise InvalidRequest("`inputs` must be one string when `stream` is true")
    return document["inputs"], parameters, stream


_ENGINE_LOCK = threading.Lock()
_ENGINES: dict[str, TextEngine] = {}


def _engine(root: str, make: Callable[[Path], TextEngine]) -> TextEngine:
    with _ENGINE_LOCK:
        if root not in _ENGINES:
            _ENGINES[root] = make(Path(root))
        return _ENGINES[root]


def answer(inputs: Any, make: Callable[[Path], TextEngine]) -> Any:
    """
    Answer one call of DJL Serving.

    The first request is empty: the front end sends it to have the model loaded, and
    waits `model_loading_timeout` for the answer.

    Args:
        inputs: `djl_python.Input`.
        make: Loads the engine of a folder, once.

    Returns:
        `djl_python.Output`; status 400 for a request that is wrong, 413 for one that
        is over a bound.
    """
    from djl_python import Output

    root = inputs.get_property("model_dir") or str(Path(__file__).parent)
    engine = _engine(root, make)
    if inputs.is_empty():
        return Output()
    try:
        document = inputs.get_as_json()
    except ValueError as error:
        return Output().error(f"the body is not JSON: {error}", code=400)
    try:
        prompts, parameters, stream = read_request(document)
        if stream:
            lines = engine.lines(prompts, parameters)
            output = Output().add_property("content-type", JSONLINES)
            return output.add_stream_content(lines, _json_line)
        answer = engine.generate(prompts, parameters)
    except BoundExceeded as error:
        return Output().error(str(error), code=413, message="over a bound")
    except InvalidRequest as error:
        return Output().error(str(error), code=400, message="bad request")
    output = Output().add_property("content-type", "application/json")
    return output.add(json.dumps(answer, ensure_ascii=False))


def _json_line(line: dict[str, Any]) -> bytes:
    return (json.dumps(line, ensure_ascii=False) + "\n").encode()

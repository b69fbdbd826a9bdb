"""
Serves an ONNX Runtime GenAI engine from DJL Serving's Python engine, as `model.py`.

The shipped file stands alone: `generation` lies in it, and beside it `lmi_build.json`
(bounds) and the engine folder. It needs numpy and onnxruntime-genai, and nothing of
the tool that built the artifact.
"""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmi_build.package.handlers.generation import (
    SETTINGS_NAME,
    BoundExceeded,
    EngineBroken,
    InvalidRequest,
    Parameters,
    Step,
    TextEngine,
    Writer,
    answer,
    read_bounds,
    read_json,
    read_tokens,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ENGINE_FILES = ("model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json")


class Engine(TextEngine):
    """
    A loaded artifact.

    Calls from several threads are safe: each generation has its own state, and the
    model is used by one of them at a time.

    Args:
        root: The artifact's folder.

    Raises:
        EngineBroken: A file is missing, cut short or not what it should be.
    """

    def __init__(self, root: Path) -> None:
        import onnxruntime_genai

        self._genai = onnxruntime_genai
        root = Path(root)
        settings = read_json(root / SETTINGS_NAME)
        self.bounds = read_bounds(settings)
        folder = root / str(settings.get("engine_dir", "engine"))
        for name in ENGINE_FILES:
            if not (folder / name).is_file():
                raise EngineBroken(f"the engine folder has no `{name}`")
        config = read_json(folder / "genai_config.json")
        self._eos_token_ids = _read_eos(config)
        self._pad_token_id = _read_pad(config)
        self._token_bytes = read_tokens(folder / "tokenizer.json")
        try:
            self._model = _load(onnxruntime_genai, folder)
            self._tokenizer = onnxruntime_genai.Tokenizer(self._model)
            # As the model was trained: the runtime leaves them out by default.
            self._tokenizer.update_options(add_special_tokens="true")
            first = int(self._tokenizer.encode("a")[0])
        except Exception as error:
            raise EngineBroken(f"the engine does not load: {error}") from error
        # What `encode` puts before every text by itself; mostly nothing.
        self._bos = self._token_bytes.specials.get(first, "")
        self._lock = threading.Lock()
        self._windowed = False
        self._windowed = self._has_window()
        self._pads = _keeps_positions(config) and not self._windowed

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        with self._lock:
            return [int(token) for token in self._tokenizer.encode(text)]

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        """
        The prompt of a conversation, ready for the assistant's turn.

        A beginning that `encode` adds by itself is left out, so that it comes once.

        Raises:
            InvalidRequest: The model has no chat template, or it refuses them.
        """
        try:
            with self._lock:
                text = self._tokenizer.apply_chat_template(
                    json.dumps(list(messages)), add_generation_prompt=True
                )
        except RuntimeError as error:
            raise InvalidRequest(f"the chat template refuses this: {error}") from error
        return str(text).removeprefix(self._bos)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """
        Logits of every position of a prompt: float32 [T, V].

        Raises:
            BoundExceeded: More ids than `max_seq_len`.
        """
        length = self.bounds["max_seq_len"]
        if len(ids) > length:
            raise BoundExceeded(f"{len(ids)} tokens are over max_seq_len = {length}")
        generator = self._start(np.asarray([ids], np.int32), len(ids))
        with self._lock:
            logits = np.asarray(generator.get_output("logits"), np.float32)
        # One prompt: the batch is 1.
        return logits.reshape(logits.shape[1:])

    def _start(self, rows: np.ndarray, length: int) -> Any:
        """
        A generator that has read prompts.

        Args:
            rows: int32 [B, T], shorter ones with padding behind.
            length: Most tokens that a row will ever hold.
        """
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(
            max_length=self.bounds["max_seq_len"] if self._windowed else length,
            batch_size=len(rows),
            do_sample=False,
            # The model's own settings would reach into `_choose`.
            min_length=0,
            repetition_penalty=1.0,
        )
        generator = self._genai.Generator(self._model, params)
        with self._lock:
            generator.append_tokens(rows)
        return generator

    def _steps(self, prompt_ids: Sequence[int], wanted: Parameters) -> Iterator[Step]:
        writer = Writer(wanted, prompt_ids, self._token_bytes, self._eos_token_ids)
        length = len(prompt_ids) + wanted.max_new_tokens
        generator = self._start(np.asarray([prompt_ids], np.int32), length)
        while True:
            with self._lock:
                logits = np.asarray(generator.get_logits(), np.float32).reshape(-1)
            step = writer.write(logits)
            yield step
            if step.finish_reason is not None:
                return
            with self._lock:
                generator.append_tokens(np.asarray([[step.token_id]], np.int32))

    def _several(
        self, prompts: Sequence[Sequence[int]], wanted: Parameters
    ) -> list[list[Step]]:
        """Generate for prompts that were checked, as many at once as can be."""
        groups: dict[int, list[int]] = {}
        for place, ids in enumerate(prompts):
            # What ends a row as padding does is taken for padding.
            alone = ids[-1] == self._pad_token_id
            length = 0 if self._pads else len(ids)
            groups.setdefault(-1 - place if alone else length, []).append(place)
        found: dict[int, list[Step]] = {}
        for places in groups.values():
            if len(places) == 1:
                found[places[0]] = list(self._steps(prompts[places[0]], wanted))
                continue
            answers = self._batch([prompts[place] for place in places], wanted)
            found.update(zip(places, answers))  # noqa: B905 - Python 3.9
        return [found[place] for place in range(len(prompts))]

    def _batch(
        self, prompts: Sequence[Sequence[int]], wanted: Parameters
    ) -> list[list[Step]]:
        """Generate for several prompts at once; each row ends on its own."""
        longest = max(len(ids) for ids in prompts)
        rows = np.full((len(prompts), longest), self._pad_token_id, np.int32)
        for place, ids in enumerate(prompts):
            rows[place, : len(ids)] = ids
        writers = [
            Writer(wanted, ids, self._token_bytes, self._eos_token_ids)
            for ids in prompts
        ]
        answers: list[list[Step]] = [[] for _ in prompts]
        going = list(range(len(prompts)))
        generator = self._start(rows, longest + wanted.max_new_tokens)
        while True:
            with self._lock:
                logits = np.array(generator.get_logits(), np.float32)
            each = logits.reshape(len(prompts), -1)
            # A row that ended goes on with the end, which nobody sees.
            tokens = np.full(len(prompts), min(self._eos_token_ids))
            for place in going:
                step = writers[place].write(each[place])
                answers[place].append(step)
                tokens[place] = step.token_id
            going = [i for i in going if answers[i][-1].finish_reason is None]
            if not going:
                return answers
            self._choose(generator, logits, tokens)

    def _choose(self, generator: Any, logits: np.ndarray, tokens: np.ndarray) -> None:
        """
        Append one token to each row.

        `append_tokens` takes prompts only where there are several rows, so the runtime
        has to find these tokens the most likely ones.

        Args:
            generator: Of the batch.
            logits: Overwritten.
            tokens: [B].
        """
        logits.fill(0.0)
        logits.reshape(len(tokens), -1)[np.arange(len(tokens)), tokens] = 1.0
        with self._lock:
            generator.set_logits(logits)
            generator.generate_next_token()

    def _has_window(self) -> bool:
        """
        Whether attention has a window, which nothing in the engine's settings says.

        With one, ONNX Runtime refuses a cache that is shorter, and rows of several
        lengths; so it is asked for a short one.
        """
        try:
            self._start(np.zeros((1, 1), np.int32), 1)
        except RuntimeError:
            return True
        return False


def _load(genai: Any, folder: Path) -> Any:
    """The model; an engine for CUDA on the CPU where this runtime has no CUDA."""
    settings = genai.Config(str(folder))
    if b'"cuda"' in (folder / "genai_config.json").read_bytes():
        if genai.is_cuda_available():
            return genai.Model(settings)
        logging.getLogger(__name__).warning(
            "the engine is for CUDA, which is not here: it runs on the CPU"
        )
        settings.clear_providers()
    return genai.Model(settings)


def _read_pad(config: Mapping[str, Any]) -> int:
    value = config.get("model", {}).get("pad_token_id")
    if not isinstance(value, int):
        raise EngineBroken("`genai_config.json` has no pad_token_id")
    return value


def _keeps_positions(config: Mapping[str, Any]) -> bool:
    """Whether all that is kept of a prompt are keys and values, by position."""
    inputs = config.get("model", {}).get("decoder", {}).get("inputs", {})
    kept = {name for name in inputs if name.startswith("past_")}
    return kept == {"past_key_names", "past_value_names"}


def _read_eos(config: Mapping[str, Any]) -> frozenset[int]:
    value = config.get("model", {}).get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(isinstance(item, int) for item in ids):
        raise EngineBroken("`genai_config.json` has no eos_token_id")
    return frozenset(ids)


def handle(inputs: Any) -> Any:
    """DJL Serving's entry point."""
    return answer(inputs, Engine)

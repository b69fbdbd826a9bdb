"""
Serves an ONNX Runtime GenAI engine from DJL Serving's Python engine, as `model.py`.

The shipped file stands alone: `generation` lies in it, and beside it `lmi_build.json`
(bounds) and the engine folder. It needs numpy and onnxruntime-genai, and nothing of
the tool that built the artifact.
"""

from __future__ import annotations

import json
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
        self._token_bytes = read_tokens(folder / "tokenizer.json")
        try:
            self._model = onnxruntime_genai.Model(str(folder))
            self._tokenizer = onnxruntime_genai.Tokenizer(self._model)
            # As the model was trained: the runtime leaves them out by default.
            self._tokenizer.update_options(add_special_tokens="true")
            first = int(self._tokenizer.encode("a")[0])
        except Exception as error:
            raise EngineBroken(f"the engine does not load: {error}") from error
        # What `encode` puts before every text by itself; mostly nothing.
        self._bos = self._token_bytes.specials.get(first, "")
        self._lock = threading.Lock()

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
        generator = self._start(ids, len(ids))
        with self._lock:
            logits = np.asarray(generator.get_output("logits"), np.float32)
        # One prompt: the batch is 1.
        return logits.reshape(logits.shape[1:])

    def _start(self, ids: Sequence[int], length: int) -> Any:
        """A generator that has read the prompt; `length` is all it will ever hold."""
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=length, do_sample=False)
        generator = self._genai.Generator(self._model, params)
        with self._lock:
            generator.append_tokens(np.asarray([ids], np.int32))
        return generator

    def _steps(self, prompt_ids: Sequence[int], wanted: Parameters) -> Iterator[Step]:
        writer = Writer(wanted, prompt_ids, self._token_bytes, self._eos_token_ids)
        generator = self._start(prompt_ids, len(prompt_ids) + wanted.max_new_tokens)
        while True:
            with self._lock:
                logits = np.asarray(generator.get_logits(), np.float32).reshape(-1)
            step = writer.write(logits)
            yield step
            if step.finish_reason is not None:
                return
            with self._lock:
                generator.append_tokens(np.asarray([[step.token_id]], np.int32))


def _read_eos(config: Mapping[str, Any]) -> frozenset[int]:
    value = config.get("model", {}).get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(isinstance(item, int) for item in ids):
        raise EngineBroken("`genai_config.json` has no eos_token_id")
    return frozenset(ids)


def handle(inputs: Any) -> Any:
    """DJL Serving's entry point."""
    return answer(inputs, Engine)

"""
Serves an ONNX Runtime GenAI engine from DJL Serving's Python engine, as `model.py`.

The shipped file stands alone: `generation` lies in it, and beside it `lmi_build.json`
(bounds) and the engine folder. It needs numpy, onnxruntime, onnxruntime-genai,
tokenizers and jinja2, and nothing of the tool that built the artifact.

Texts lie in slots of the graph where its attention allows it, so that they join and
leave a batch between two tokens. Other graphs (with a window, with states that are not
keys and values, on a GPU) are run by the runtime's own generators, one for each text
that comes alone, and one for as many prompts of a request as it takes.

`onnxruntime_genai.Engine`, the runtime's own scheduler, is not used: it gives tokens
without logits, so no log probabilities, and draws with a generator of its own.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmi_build.package.handlers.batching import Scheduler
from lmi_build.package.handlers.generation import (
    SETTINGS_NAME,
    BoundExceeded,
    EngineBroken,
    InvalidRequest,
    Text,
    answer,
    read_bounds,
    read_json,
)
from lmi_build.package.handlers.onnxruntime_slots import GraphSlots, has_slots
from lmi_build.package.handlers.words import WordsEngine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ENGINE_FILES = ("model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json")


class Engine(WordsEngine):
    """
    A loaded artifact.

    Calls from several threads are safe: the model is used by one of them at a time.

    Args:
        root: The artifact's folder.

    Raises:
        EngineBroken: A file is missing, cut short or not what it should be.
    """

    def __init__(self, root: Path) -> None:
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
        super().__init__(folder)
        self.slots = _open_slots(folder, config, self.bounds)
        self.scheduler = Scheduler(self.slots)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """
        Logits of every position of a prompt: float32 [T, V].

        Raises:
            BoundExceeded: More ids than `max_seq_len`.
        """
        length = self.bounds["max_seq_len"]
        if len(ids) > length:
            raise BoundExceeded(f"{len(ids)} tokens are over max_seq_len = {length}")
        with self._lock:
            return self.slots.logits(self.scheduler.claim(None), ids)

    def finish(self, texts: Sequence[Text]) -> None:
        """Generate for texts that were checked, as many at once as can be."""
        if isinstance(self.slots, GraphSlots):
            super().finish(texts)
            return
        groups: dict[int, list[Text]] = {}
        for place, text in enumerate(texts):
            # What ends a row as padding does is taken for padding.
            alone = text.ids[-1] == self._pad_token_id
            length = 0 if self.slots.pads else len(text.ids)
            groups.setdefault(-1 - place if alone else length, []).append(text)
        for group in groups.values():
            if len(group) == 1:
                super().finish(group)
                continue
            with self._lock:
                self._batch(group, self.slots)

    def _batch(self, texts: Sequence[Text], slots: GeneratorSlots) -> None:
        """Generate for several prompts at once; each row ends on its own."""
        longest = max(len(text.ids) for text in texts)
        rows = np.full((len(texts), longest), self._pad_token_id, np.int32)
        for place, text in enumerate(texts):
            rows[place, : len(text.ids)] = text.ids
        generator = slots.start(rows)
        while True:
            logits = np.array(generator.get_logits(), np.float32)
            each = logits.reshape(len(texts), -1)
            # A row that ended goes on with the end, which nobody sees.
            tokens = np.full(len(texts), min(self._eos_token_ids))
            for place, text in enumerate(texts):
                if not text.ended:
                    tokens[place] = text.write(each[place]).token_id
            if all(text.ended for text in texts):
                return
            _choose(generator, logits, tokens)


class GeneratorSlots:
    """
    One of the runtime's generators for each text, each run on its own.

    Not for several threads at once.

    Args:
        folder: The engine.
        config: `genai_config.json`.
        num_slots: Texts.
        max_seq_len: Tokens of each.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        num_slots: int,
        max_seq_len: int,
    ) -> None:
        import onnxruntime_genai

        self._genai = onnxruntime_genai
        self._model = _load(onnxruntime_genai, folder)
        self.num_slots = num_slots
        self.max_seq_len = max_seq_len
        self._generators: dict[int, Any] = {}
        self.pads = _keeps_positions(config) and not self._has_window()

    def read(self, slot: int, ids: Sequence[int]) -> Iterator[np.ndarray | None]:
        """
        Forget what a slot holds and read a text into it, in one piece.

        Yields:
            float32 [V], once.

        Raises:
            InvalidRequest: No tokens.
        """
        if not len(ids):
            raise InvalidRequest("the text has no tokens")
        self._generators.pop(slot, None)
        generator = self.start(np.asarray([ids], np.int32))
        self._generators[slot] = generator
        yield np.array(generator.get_logits(), np.float32).reshape(-1)

    def step(self, tokens: Mapping[int, int]) -> dict[int, np.ndarray]:
        """Append one token to some slots; float32 [V] by slot."""
        found = {}
        for slot, token in tokens.items():
            generator = self._generators[slot]
            generator.append_tokens(np.asarray([[token]], np.int32))
            found[slot] = np.array(generator.get_logits(), np.float32).reshape(-1)
        return found

    def logits(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """Logits of every position of a text: float32 [T, V]."""
        del slot
        generator = self.start(np.asarray([ids], np.int32))
        logits = np.array(generator.get_output("logits"), np.float32)
        # One prompt: the batch is 1.
        return logits.reshape(logits.shape[1:])

    def start(self, rows: np.ndarray) -> Any:
        """
        A generator that has read prompts.

        Args:
            rows: int32 [B, T], shorter ones with padding behind.
        """
        return self._start(rows, self.max_seq_len)

    def _start(self, rows: np.ndarray, length: int) -> Any:
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(
            max_length=length,
            batch_size=len(rows),
            do_sample=False,
            # The model's own settings would reach into `_choose`.
            min_length=0,
            repetition_penalty=1.0,
        )
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(rows)
        return generator

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


def _open_slots(
    folder: Path, config: Mapping[str, Any], bounds: Mapping[str, int]
) -> GraphSlots | GeneratorSlots:
    """
    The engine's slots, shared by one graph where it can be run that way.

    Raises:
        EngineBroken: It cannot be loaded in any way.
    """
    sizes = {
        "num_slots": bounds["max_batch_size"],
        "max_seq_len": bounds["max_seq_len"],
    }
    if has_slots(config):
        try:
            return GraphSlots(folder, config, **sizes)
        except Exception as error:  # noqa: BLE001 - of a class for each of its codes
            logging.getLogger(__name__).info("no slots in this graph: %s", error)
    try:
        return GeneratorSlots(folder, config, **sizes)
    except Exception as error:
        raise EngineBroken(f"the engine does not load: {error}") from error


def _choose(generator: Any, logits: np.ndarray, tokens: np.ndarray) -> None:
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
    generator.set_logits(logits)
    generator.generate_next_token()


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

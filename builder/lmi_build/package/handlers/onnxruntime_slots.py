"""
Texts in slots of an ONNX Runtime engine, all of them stepped by one run of its graph.

Keys and values of every slot lie in one buffer for each layer, which the graph's
attention (GroupQueryAttention) reads and writes in place; how far a row has come is the
sum of its attention mask. So rows of one run may stand at different positions, which
the runtime's own generators do not offer: there rows begin and end together.

Becomes part of `model.py` as `generation` does: numpy, onnxruntime and Python 3.9.

Shape suffixes: B rows, T tokens, V words, H heads of keys, S places, D of a head.

Source: onnxruntime `contrib_ops/cpu/bert/group_query_attention.cc` (`seqlens_k`, and
past and present that share a buffer; several tokens after a past for one row alone).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lmi_build.package.handlers.generation import BoundExceeded, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

# A prompt is read in pieces of so many tokens. Running answers wait for one of them.
PIECE = 128
_NAMES = {"input_ids", "attention_mask", "past_key_names", "past_value_names"}
_OPTIONS = {"intra_op_num_threads", "log_id", "provider_options"}


def has_slots(config: Mapping[str, Any]) -> bool:
    """
    Whether all that a graph keeps of a text are keys and values in a shared buffer.

    Args:
        config: `genai_config.json`.
    """
    decoder = config.get("model", {}).get("decoder", {})
    options = decoder.get("session_options", {})
    unknown = {name for name in options if "." not in name} - _OPTIONS
    return (
        not unknown
        and not options.get("provider_options")
        and set(decoder.get("inputs", {})) - {"position_ids"} == _NAMES
        and bool(config.get("search", {}).get("past_present_share_buffer"))
    )


class GraphSlots:
    """
    A graph on the CPU, and what it keeps of several texts.

    Not for several threads at once.

    Args:
        folder: With `model.onnx`.
        config: `genai_config.json`, for which `has_slots` holds.
        num_slots: Texts.
        max_seq_len: Tokens of each.

    Raises:
        Exception: What the runtime says of a graph that it cannot run this way, such as
            one whose attention has a window.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        num_slots: int,
        max_seq_len: int,
    ) -> None:
        import onnxruntime

        decoder = config["model"]["decoder"]
        self._session = onnxruntime.InferenceSession(
            str(folder / decoder["filename"]),
            _options(onnxruntime, decoder["session_options"]),
            providers=["CPUExecutionProvider"],
        )
        self.num_slots = num_slots
        self.max_seq_len = max_seq_len
        self._names = decoder["inputs"]
        self._logits_name = decoder["outputs"]["logits"]
        inputs = {row.name: row for row in self._session.get_inputs()}
        outputs = {row.name: row for row in self._session.get_outputs()}
        self._vocab_size = int(outputs[self._logits_name].shape[-1])
        self._has_positions = self._names.get("position_ids") in inputs
        shape = (
            num_slots,
            int(decoder["num_key_value_heads"]),
            max_seq_len,
            int(decoder["head_size"]),
        )
        # By the names of what is read and what is written.
        self._caches: dict[tuple[str, str], np.ndarray] = {}
        for layer in range(int(decoder["num_hidden_layers"])):
            for kind in ("key", "value"):
                read = self._names[f"past_{kind}_names"] % layer
                written = decoder["outputs"][f"present_{kind}_names"] % layer
                if inputs[read].type != "tensor(float)":
                    raise InvalidRequest(f"`{read}` is {inputs[read].type}")
                self._caches[read, written] = np.zeros(shape, np.float32)
        self._lengths = [0] * num_slots
        self._bindings: dict[tuple[int, int], Any] = {}
        self._try()

    def length(self, slot: int) -> int:
        """Tokens that a slot holds."""
        return self._lengths[slot]

    def read(self, slot: int, ids: Sequence[int]) -> Iterator[np.ndarray | None]:
        """
        Forget what a slot holds and read a text into it, piece by piece.

        Yields:
            None after every piece but the last, then float32 [V].

        Raises:
            BoundExceeded: More tokens than `max_seq_len`.
            InvalidRequest: No tokens.
        """
        for logits_TV, done in self._read(slot, ids):
            yield logits_TV[-1] if done == len(ids) else None

    def logits(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """Logits of every position of a text, float32 [T, V]; the slot holds it."""
        return np.concatenate([logits_TV for logits_TV, _ in self._read(slot, ids)])

    def step(self, tokens: Mapping[int, int]) -> dict[int, np.ndarray]:
        """
        Append one token to some slots.

        Returns:
            float32 [V] by slot.

        Raises:
            BoundExceeded: A slot is full.
        """
        for slot in tokens:
            self._check_room(self._lengths[slot] + 1)
        first, last = min(tokens), max(tokens)
        slots = range(first, last + 1)
        # A row that rests writes where its next token will, and attends to no more.
        places = [min(self._lengths[slot], self.max_seq_len - 1) for slot in slots]
        ids_BT = np.array([[tokens.get(slot, 0)] for slot in slots], np.int64)
        mask_BT = np.arange(max(places) + 1) <= np.array(places)[:, None]
        logits_BTV = self._run(first, ids_BT, mask_BT.astype(np.int64), places)
        for slot in tokens:
            self._lengths[slot] += 1
        return {slot: logits_BTV[slot - first, 0] for slot in tokens}

    def _read(self, slot: int, ids: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
        if not len(ids):
            raise InvalidRequest("the text has no tokens")
        self._check_room(len(ids))
        self._lengths[slot] = done = 0
        while done < len(ids):
            ids_BT = np.array([ids[done : done + PIECE]], np.int64)
            end = done + ids_BT.shape[1]
            mask_BT = np.ones((1, end), np.int64)
            logits_BTV = self._run(slot, ids_BT, mask_BT, [done])
            self._lengths[slot] = done = end
            yield logits_BTV[0], done

    def _run(
        self, first: int, ids_BT: np.ndarray, mask_BT: np.ndarray, places: Sequence[int]
    ) -> np.ndarray:
        """Run rows of neighbouring slots, the first of them `first`."""
        num_rows, num_tokens = ids_BT.shape
        binding = self._binding(first, num_rows)
        binding.bind_cpu_input(self._names["input_ids"], ids_BT)
        binding.bind_cpu_input(self._names["attention_mask"], mask_BT)
        if self._has_positions:
            positions_BT = np.array(places)[:, None] + np.arange(num_tokens)
            binding.bind_cpu_input(self._names["position_ids"], positions_BT)
        logits_BTV = np.empty((num_rows, num_tokens, self._vocab_size), np.float32)
        binding.bind_output(
            self._logits_name,
            "cpu",
            0,
            np.float32,
            logits_BTV.shape,
            logits_BTV.ctypes.data,
        )
        self._session.run_with_iobinding(binding)
        return logits_BTV

    def _binding(self, first: int, num_rows: int) -> Any:
        """Where these rows' keys and values lie; made once."""
        key = first, num_rows
        if key not in self._bindings:
            binding = self._session.io_binding()
            for (read, written), cache_BHSD in self._caches.items():
                rows = cache_BHSD[first : first + num_rows]
                place = ("cpu", 0, np.float32, rows.shape, rows.ctypes.data)
                binding.bind_input(read, *place)
                binding.bind_output(written, *place)
            self._bindings[key] = binding
        return self._bindings[key]

    def _try(self) -> None:
        """Two rows at different positions, which some graphs refuse."""
        for slot in range(min(self.num_slots, 2)):
            length = min(slot + 1, self.max_seq_len - 1)
            list(self.read(slot, [0] * length))
        self.step(dict.fromkeys(range(min(self.num_slots, 2)), 0))
        self._lengths = [0] * self.num_slots

    def _check_room(self, length: int) -> None:
        if length > self.max_seq_len:
            raise BoundExceeded(
                f"{length} tokens are over max_seq_len = {self.max_seq_len}"
            )


def _options(onnxruntime: Any, wanted: Mapping[str, Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(wanted.get("intra_op_num_threads") or 0)
    for name, value in wanted.items():
        if "." in name:
            options.add_session_config_entry(name, str(value))
    return options

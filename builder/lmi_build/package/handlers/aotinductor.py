"""
Serves an AOTInductor engine from DJL Serving's Python engine, as `model.py`.

The shipped file stands alone: `generation` lies in it, and beside it `lmi_build.json`
(bounds) and the engine folder. It needs torch, numpy, safetensors and tokenizers;
no transformers, no compiler, and nothing of the tool that built the artifact.

Graphs have static shapes: a prompt goes through the context graphs in pieces, one
slot at a time; a step goes through the generation graph of one slot, or through that
of all of them. The caches belong to the session and are written by the graphs.

Shape suffixes: T tokens, V words, B slots.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmi_build.package.handlers.batching import Scheduler
from lmi_build.package.handlers.generation import (
    SETTINGS_NAME,
    BoundExceeded,
    EngineBroken,
    EngineMisfit,
    InvalidRequest,
    answer,
    read_bounds,
    read_json,
)
from lmi_build.package.handlers.words import WordsEngine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

RECORD_NAME = "engine.json"
PACKAGE_NAME = "engine.pt2"
WEIGHTS_NAME = "weights.safetensors"
ENGINE_FILES = (RECORD_NAME, PACKAGE_NAME, WEIGHTS_NAME, "tokenizer.json")
# Inductor's graphs compare their inputs with what they were built for only where this
# is set before the first call.
CHECK_INPUTS = "AOTI_RUNTIME_CHECK_INPUTS"
CPU_FILE = Path("/proc/cpuinfo")
# Torch's loader takes these by place: several threads, one runner, the first device;
# and of weights: none is a buffer of its own, all are given, used where they lie.
_RUNNERS = (False, 1, -1)
_CONSTANTS = (False, True, True)


# Tokens that are computed in the time that a piece takes beside them, which is mostly
# spent on widening weights.
PIECE_COST = 8


def cheapest(buckets: Sequence[int], left: int) -> int:
    """The length of pieces that `left` tokens of a prompt are soonest read with."""
    return min(buckets, key=lambda size: -(-left // size) * (size + PIECE_COST))


class Session:
    """
    A loaded engine: slots that hold texts, and logits after each.

    Not for several threads at once.

    Args:
        folder: The engine.
        bounds: The promised bounds.

    Raises:
        EngineBroken: A file is missing, cut short or for another torch.
        EngineMisfit: It is for another machine.
    """

    def __init__(self, folder: Path, bounds: Mapping[str, int]) -> None:
        os.environ[CHECK_INPUTS] = "1"
        for name in ENGINE_FILES:
            if not (folder / name).is_file():
                raise EngineBroken(f"the engine folder has no `{name}`")
        record = read_json(folder / RECORD_NAME)
        self.bounds = dict(bounds)
        _check_machine(record)
        import torch

        self._torch = torch
        _check_torch(record, torch)
        self._device = str(record["device"])
        self._width = int(record["hidden_size"])
        self._dtype = getattr(torch, record["dtype"])
        self._graphs = _load_graphs(torch, folder, record)
        sizes: dict[str, list[int]] = {}
        for name in self._graphs:
            kind, _, size = name.rpartition("_")
            sizes.setdefault(kind, []).append(int(size))
        self._buckets = sorted(sizes["context"])
        self._score_rows = sizes["score"][0]
        self.num_slots = max(sizes["generation"])
        self.max_seq_len = int(record["max_seq_len"])
        shape = (self.num_slots, *record["cache_shape"])
        self._keys = [self._empty(shape) for _ in range(record["num_layers"])]
        self._values = [self._empty(shape) for _ in range(record["num_layers"])]
        self._lengths = [0] * self.num_slots
        # Views of one slot's caches, made once.
        self._views = [
            (
                [cache[slot : slot + 1] for cache in self._keys],
                [cache[slot : slot + 1] for cache in self._values],
            )
            for slot in range(self.num_slots)
        ]

    def length(self, slot: int) -> int:
        """Tokens that a slot holds."""
        return self._lengths[slot]

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """
        Forget what a slot holds and read a text into it.

        Returns:
            float32 [V], after the last token.

        Raises:
            BoundExceeded: More tokens than `max_seq_len`.
        """
        pieces = list(self._read(slot, ids))
        last: np.ndarray = self._numpy(pieces[-1][0])[0]
        return last

    def logits(self, ids: Sequence[int], slot: int) -> np.ndarray:
        """
        Logits of every position of a text: float32 [T, V]; the slot holds it then.

        Raises:
            BoundExceeded: More tokens than `max_seq_len`.
        """
        torch, rows = self._torch, self._score_rows
        found = []
        for _, hidden, count in self._read(slot, ids):
            for start in range(0, count, rows):
                part = hidden[start : min(start + rows, count)]
                padded = torch.zeros(
                    rows, self._width, dtype=self._dtype, device=self._device
                )
                padded[: len(part)] = part
                scored = self._run(f"score_{rows}", padded)[0]
                found.append(self._numpy(scored)[: len(part)])
        return np.concatenate(found)

    def step(self, tokens: Mapping[int, int]) -> dict[int, np.ndarray]:
        """
        Append one token to some slots.

        Args:
            tokens: Token id by slot.

        Returns:
            float32 [V] by slot.

        Raises:
            BoundExceeded: A slot is full.
        """
        for slot in tokens:
            self._check_room(self._lengths[slot] + 1)
        if len(tokens) == 1 or self.num_slots == 1:
            ((slot, token),) = tokens.items()
            place = self._lengths[slot]
            logits = self._run(
                "generation_1",
                self._whole([token]),
                self._whole([place]),
                *self._views[slot],
            )[0]
            self._lengths[slot] = place + 1
            return {slot: self._numpy(logits)[0]}
        slots = range(self.num_slots)
        logits = self._run(
            f"generation_{self.num_slots}",
            self._whole([tokens.get(slot, 0) for slot in slots]),
            # A slot that rests writes where nobody looks.
            self._whole(
                [
                    self._lengths[slot] if slot in tokens else self.max_seq_len
                    for slot in slots
                ]
            ),
            self._keys,
            self._values,
        )[0]
        rows = self._numpy(logits)
        for slot in tokens:
            self._lengths[slot] += 1
        return {slot: rows[slot] for slot in tokens}

    def read(self, slot: int, ids: Sequence[int]) -> Iterator[np.ndarray | None]:
        """
        `prefill` in pieces, between which other slots may step.

        Yields:
            None after every piece but the last, then float32 [V].

        Raises:
            BoundExceeded: More tokens than `max_seq_len`.
        """
        for logits, _, _ in self._read(slot, ids):
            whole = self._lengths[slot] == len(ids)
            yield self._numpy(logits)[0] if whole else None

    def _read(self, slot: int, ids: Sequence[int]) -> Iterator[tuple[Any, Any, int]]:
        """Every piece's last logits, what enters the head, and its tokens."""
        if not len(ids):
            raise InvalidRequest("the text has no tokens")
        self._check_room(len(ids))
        self._lengths[slot] = 0
        done = 0
        while done < len(ids):
            bucket = cheapest(self._buckets, len(ids) - done)
            piece = list(ids[done : done + bucket])
            padded = piece + [0] * (bucket - len(piece))
            span = self._whole([done, len(piece)])
            logits, hidden = self._run(
                f"context_{bucket}", self._whole(padded), span, *self._views[slot]
            )
            done += len(piece)
            self._lengths[slot] = done
            yield logits, hidden, len(piece)

    def _check_room(self, length: int) -> None:
        if length > self.max_seq_len:
            raise BoundExceeded(
                f"{length} tokens are over max_seq_len = {self.max_seq_len}"
            )

    def _run(self, name: str, *inputs: Any) -> Any:
        with self._torch.inference_mode():
            found = self._graphs[name](*inputs)
        return found if isinstance(found, (list, tuple)) else (found,)

    def _whole(self, values: Sequence[int]) -> Any:
        torch = self._torch
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _empty(self, shape: Sequence[int]) -> Any:
        return self._torch.zeros(shape, dtype=self._dtype, device=self._device)

    @staticmethod
    def _numpy(tensor: Any) -> np.ndarray:
        array: np.ndarray = tensor.float().cpu().numpy()
        return array


def _check_torch(record: Mapping[str, Any], torch: Any) -> None:
    """Compiled code calls into torch; another version may have moved what it calls."""
    wanted, here = str(record["torch"]), str(torch.__version__).partition("+")[0]
    if wanted != here:
        raise EngineBroken(
            f"the engine was compiled with torch {wanted}, here is {here}: install"
            f" torch=={wanted}, or build the artifact again with torch {here}"
        )
    capability = record.get("compute_capability")
    if not capability:
        return
    if not torch.cuda.is_available():
        raise EngineMisfit(
            f"the engine is for a GPU of compute capability {capability}, and torch"
            " sees none here",
            "run it on such a GPU, with a torch built for CUDA",
        )
    found = ".".join(str(part) for part in torch.cuda.get_device_capability())
    if found != capability:
        raise EngineMisfit(
            f"the engine is for a GPU of compute capability {capability}, this one has"
            f" {found}",
            f"build the artifact again on this GPU, or run it on one with {capability}",
        )


def _check_machine(record: Mapping[str, Any]) -> None:
    """Instructions that this processor lacks would end the process."""
    wanted = set(record.get("cpu_flags") or ())
    if not wanted or not CPU_FILE.is_file():
        return
    found: set[str] = set()
    for line in CPU_FILE.read_text("utf-8", "replace").splitlines():
        if line.startswith(("flags", "Features")):
            found = set(line.partition(":")[2].split())
            break
    missing = sorted(wanted - found)
    if missing:
        isa = record["isa"]
        has = next((each for each in ("avx512", "avx2") if _has(each, found)), "")
        ways = [f"take a machine or an instance whose processor has {isa}"]
        if has and has != isa:
            ways.insert(0, f"set `compile.options.isa: {has}` and build again")
        raise EngineMisfit(
            f"the engine is compiled for `{isa}`, this processor has"
            f" {has or 'neither avx2 nor avx512'} (no {', '.join(missing)})",
            ", or ".join(ways),
        )


def _has(isa: str, flags: set[str]) -> bool:
    return {"avx512": "avx512f", "avx2": "avx2"}[isa] in flags


def _load_graphs(torch: Any, folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Graphs by name, with their weights mapped from one file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    device = record["device"]
    try:
        weights = load_file(folder / WEIGHTS_NAME, device=device)
    except (SafetensorError, OSError) as error:
        raise EngineBroken(f"`{WEIGHTS_NAME}` cannot be read: {error}") from error
    graphs = {}
    for name in record["graphs"]:
        try:
            loader = torch._C._aoti.AOTIModelPackageLoader(  # noqa: SLF001
                str(folder / PACKAGE_NAME), name, *_RUNNERS
            )
            names = list(loader.get_constant_fqns())
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise EngineBroken(
                f"`{PACKAGE_NAME}` does not give the graph `{name}`: {first}"
            ) from error
        missing = sorted(set(names) - set(weights))
        if missing:
            raise EngineBroken(
                f"{len(missing)} constants of `{name}` are not in `{WEIGHTS_NAME}`,"
                f" such as `{missing[0]}`: build the artifact again"
            )
        loader.load_constants({key: weights[key] for key in names}, *_CONSTANTS)
        graphs[name] = _Graph(loader, weights)
    return graphs


class _Graph:
    """
    A graph that takes tensors and lists of them.

    Args:
        loader: Torch's.
        weights: Kept as long as the graph, which reads them where they lie.
    """

    def __init__(self, loader: Any, weights: Mapping[str, Any]) -> None:
        self._loader = loader
        self._weights = weights

    def __call__(self, *inputs: Any) -> Any:
        flat: list[Any] = []
        for value in inputs:
            flat.extend(value if isinstance(value, list) else [value])
        try:
            return self._loader.boxed_run(flat)
        except RuntimeError as error:
            raise EngineBroken(f"a graph refuses its inputs: {error}") from error


class Engine(WordsEngine):
    """
    A loaded artifact.

    Calls from several threads are safe: the graphs are used by one at a time. There
    may be more texts than slots: the one that waited longest loses its slot, and reads
    its text anew when its turn comes.

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
        self.session = Session(folder, self.bounds)
        super().__init__(folder)
        self._eos_token_ids = _read_eos(folder)
        self.scheduler = Scheduler(self.session)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """
        Logits of every position of a prompt: float32 [T, V].

        Raises:
            BoundExceeded: More ids than `max_seq_len`.
        """
        with self._lock:
            return self.session.logits(ids, self.scheduler.claim(None))


def _read_eos(folder: Path) -> frozenset[int]:
    ids = read_json(folder / RECORD_NAME).get("eos_token_ids")
    if not ids or not all(isinstance(item, int) for item in ids):
        raise EngineBroken(f"`{RECORD_NAME}` has no eos_token_ids")
    return frozenset(ids)


def handle(inputs: Any) -> Any:
    """DJL Serving's entry point."""
    return answer(inputs, Engine)

"""
What every driver shares: the request, the seed, the device.

A driver is the one file that speaks to a library. It runs in the toolchain's own
interpreter, in a process of its own below the worker, so that a library that aborts
takes nothing with it. It reads a request, hands over the model, the token windows
and the native options that the provider's `lower` wrote, and saves what comes out.
"""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """
    What a driver is asked to do.

    Args:
        model: Folder that the library reads.
        out: Empty folder for what the library saves.
        options: Native options, complete.
        windows: Token ids, sample after sample; empty for methods without data.
        threads: Threads of computation.
    """

    model: Path
    out: Path
    options: Mapping[str, Any]
    windows: tuple[tuple[int, ...], ...]
    threads: int

    def save(self, path: Path) -> None:
        """Write the request for `read_request`."""
        document = {
            "model": str(self.model),
            "out": str(self.out),
            "options": dict(self.options),
            "windows": [list(window) for window in self.windows],
            "threads": self.threads,
        }
        path.write_text(json.dumps(document), "utf-8")


def read_request(path: Path) -> Request:
    """Read what `Request.save` wrote."""
    document = json.loads(path.read_bytes())
    return Request(
        model=Path(document["model"]),
        out=Path(document["out"]),
        options=document["options"],
        windows=tuple(tuple(window) for window in document["windows"]),
        threads=document["threads"],
    )


def drive(quantize: Callable[[Request], None]) -> None:
    """Run one driver on the request that the command line names."""
    request = read_request(Path(sys.argv[1]))
    # A library asks here how many threads its own pools may have.
    os.environ.setdefault("OMP_NUM_THREADS", str(request.threads))
    import torch

    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(request.threads)
    quantize(request)


def say(text: str) -> None:
    """One line for the stage's log."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def device() -> str:
    """Where the library computes."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def samples(request: Request) -> list[dict[str, Tensor]]:
    """The windows as a model takes them, one at a time."""
    import torch

    return [
        {
            "input_ids": torch.tensor([window], dtype=torch.int64),
            "attention_mask": torch.ones((1, len(window)), dtype=torch.int64),
        }
        for window in request.windows
    ]

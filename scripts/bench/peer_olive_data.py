"""
Olive's way to bring calibration data of one's own: a script that registers it.

Runs in Olive's environment only; `peer_olive.py` names it in the workflow.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from olive.data.registry import Registry  # type: ignore[import-not-found, unused-ignore]


class TokenWindows(torch.utils.data.Dataset[tuple[dict[str, torch.Tensor], Any]]):
    """Token windows from a JSON file; a row is (inputs, labels), as Olive wants it."""

    def __init__(self, path: str) -> None:
        self._rows: list[list[int]] = json.loads(Path(path).read_text())

    def __len__(self) -> int:
        """Windows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], Any]:
        """One window: ids of shape (T) with a mask of ones."""
        ids = torch.tensor(self._rows[index])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids


@Registry.register_dataset()  # type: ignore[untyped-decorator, unused-ignore]
def token_windows(path: str, **_: Any) -> TokenWindows:
    """The data set's name in a workflow."""
    return TokenWindows(path)

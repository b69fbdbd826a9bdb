"""The handler `slots_handler` as an engine in memory, for tests of batching."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

from packed import HANDLERS

if TYPE_CHECKING:
    from pathlib import Path

BOUNDS = {
    "max_input_len": 24,
    "max_output_len": 12,
    "max_seq_len": 36,
    "max_batch_size": 3,
}


def tiny_engine(root: Path, **settings: Any) -> Any:
    """An engine whose settings are written to a folder."""
    document = {"bounds": BOUNDS, **settings}
    (root / "lmi_build.json").write_text(json.dumps(document))
    return handler().Engine(root)


def handler() -> Any:
    """The handler as a module."""
    path = HANDLERS / "slots_handler.py"
    spec = importlib.util.spec_from_file_location("slots_handler", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

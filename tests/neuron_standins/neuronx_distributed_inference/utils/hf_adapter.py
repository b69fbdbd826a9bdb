"""Stands in for utils/hf_adapter.py of NxD Inference 0.1.1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def load_pretrained_config(
    model_path_or_name: str | None = None, hf_config: Any = None
) -> Callable[[Any], None]:
    """What fills a configuration from a model's `config.json`."""

    def load_config(self: Any) -> None:
        text = (Path(str(model_path_or_name)) / "config.json").read_text("utf-8")
        vars(self).update(json.loads(text))
        self._name_or_path = model_path_or_name

    return load_config

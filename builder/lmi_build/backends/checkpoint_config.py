"""What a compiler of whole engines reads of a checkpoint before its tensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.errors import SourceInvalid

if TYPE_CHECKING:
    from pathlib import Path


def read_checkpoint_config(checkpoint: Path) -> dict[str, Any]:
    """
    Read `config.json` of a checkpoint that has a tokenizer beside it.

    Raises:
        SourceInvalid: `compile.checkpoint-broken` or `compile.tokenizer-missing`.
    """
    try:
        config: dict[str, Any] = json.loads((checkpoint / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise SourceInvalid(
            f"the checkpoint's config.json cannot be read: {error}",
            code="compile.checkpoint-broken",
            hints=("run `lmi-build cache verify`, then build again",),
        ) from error
    if not (checkpoint / "tokenizer.json").is_file():
        raise SourceInvalid(
            "the checkpoint has no `tokenizer.json`",
            code="compile.tokenizer-missing",
            hints=("convert the model's tokenizer to the fast format and retry",),
        )
    return config

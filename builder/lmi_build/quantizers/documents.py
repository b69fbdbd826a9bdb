"""The JSON files beside a model's weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.errors import SourceInvalid

if TYPE_CHECKING:
    from pathlib import Path


def read_document(path: Path) -> dict[str, Any]:
    """
    Read one object, such as `config.json`.

    Raises:
        SourceInvalid: `quantize.config`.
    """
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SourceInvalid(
            f"`{path}` cannot be read: {error}",
            code="quantize.config",
            hints=("fetch the model again",),
        ) from error
    if not isinstance(document, dict):
        raise SourceInvalid(
            f"`{path}` is not a JSON object",
            code="quantize.config",
            hints=("fetch the model again",),
        )
    return document

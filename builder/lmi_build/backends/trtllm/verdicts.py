"""A folder before the front end of one LMI release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.folder import Folder
    from lmi_build.backends.trtllm.front_ends import FrontEnd


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """
    One folder before one front end.

    Args:
        folder: What lies at the container's model folder.
        front: The release's front end.
        properties: The entries of `serving.properties` and of the environment.
        lmi: Version of LMI, as it was asked for.
        trtllm: Version of TensorRT-LLM of the image, empty when unknown.
        mount: Where the folder is in the container.
    """

    folder: Folder
    front: FrontEnd
    properties: Mapping[str, str]
    lmi: str
    trtllm: str
    mount: str

    def option(self, name: str) -> str | None:
        """A property of the model, without `option.`."""
        return self.properties.get(f"option.{name}")

    def number(self, name: str) -> int | None:
        """A property that is a number; None when it is not set or not one."""
        text = (self.option(name) or "").strip()
        return int(text) if text.isascii() and text.isdigit() else None

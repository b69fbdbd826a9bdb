"""The float model's logits, the yardstick for an engine."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from lmi_build.errors import SourceInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self


class FloatReference:
    """
    A Hugging Face model in float32, loaded once; a context manager that frees it.

    float32 because it adds no rounding of its own worth speaking of: bfloat16
    alone moves the logits of a 135M model by more than an 8-bit engine does.
    """

    def __init__(self, model: Path, *, threads: int, trust_remote_code: bool) -> None:
        self._path = model
        self._threads = threads
        self._trust_remote_code = trust_remote_code
        self._model: Any = None

    def __enter__(self) -> Self:
        """
        Load it.

        Raises:
            SourceInvalid: `verify.reference-unreadable`.
        """
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        if self._threads > 0:
            torch.set_num_threads(self._threads)
        try:
            self._model = AutoModelForCausalLM.from_pretrained(
                self._path,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=self._trust_remote_code,
            ).eval()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise SourceInvalid(
                f"the float model cannot be loaded: {error}",
                code="verify.reference-unreadable",
                hints=(
                    "run `lmi-build cache verify`; the fetched model may be broken",
                ),
            ) from error
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._model = None
        gc.collect()

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Float32 logits, `[T, V]`, of one sequence of T tokens."""
        import numpy as np
        import torch

        with torch.inference_mode():
            output = self._model(torch.tensor([list(ids)]), use_cache=False)
        return np.asarray(output.logits[0].numpy(), dtype=np.float32)

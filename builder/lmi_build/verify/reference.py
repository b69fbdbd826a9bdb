"""The float model's logits, the yardstick for an engine."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from lmi_build.errors import SourceInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import IO

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


class LogitsFile:
    """
    Logits of windows on disk, exact, so that two models need not share the memory.

    Args:
        stream: An empty file; what is written goes when it is closed.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._shapes: list[tuple[int, int]] = []
        self._starts = [0]

    def append(self, logits_TV: npt.NDArray[np.float32]) -> None:
        """Write one window's logits, `[T, V]`."""
        import numpy as np

        num_tokens, vocab = logits_TV.shape
        self._stream.seek(self._starts[-1])
        # Not `tofile`, which does not say that the disk is full.
        self._stream.write(np.ascontiguousarray(logits_TV).data)
        self._shapes.append((num_tokens, vocab))
        self._starts.append(self._starts[-1] + logits_TV.nbytes)

    def read(self, index: int) -> npt.NDArray[np.float32]:
        """
        The logits of one window.

        Raises:
            OSError: The file ends before they do.
        """
        import numpy as np

        num_tokens, vocab = self._shapes[index]
        self._stream.seek(self._starts[index])
        flat = np.fromfile(self._stream, np.float32, count=num_tokens * vocab)
        if flat.size != num_tokens * vocab:
            raise OSError(f"the logits of window {index} end after {flat.size} values")
        return flat.reshape(num_tokens, vocab)

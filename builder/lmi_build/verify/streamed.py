"""
The float model's logits with one decoder block in memory.

All windows go through block k before block k + 1 is read. The computation is the
library's own model, block by block: its blocks are empty until they are called, read
their weights as they stand in the checkpoint, widen them to float32, and are emptied
again. So a model of any depth is compared on a machine that holds its embeddings, its
head and one block.

Shape suffixes: N windows, T tokens of a window, D residual width, V vocabulary.
"""

from __future__ import annotations

import gc
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.verify.stage import GROUP_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from lmi_build.checkpoint.header import TensorEntry


def can_stream(model: Path, *, reader: WeightReader | None = None) -> bool:
    """
    Whether every weight of the library's model stands in the checkpoint by its name.

    It does not for a model whose weights the library renames, joins or dequantizes
    while it loads them, such as experts in one tensor; that one is loaded whole.

    Args:
        model: A folder.
        reader: Gives other weights under the same names, such as dequantized ones.
    """
    try:
        config = json.loads((model / "config.json").read_bytes())
        packed = reader is None and "quantization_config" in config
        if packed or "auto_map" in config:
            return False
        with _skeleton(model) as made, CheckpointReader(model) as own:
            if made is None or _blocks(made) is None:
                return False
            found = own if reader is None else reader
            return all(
                name in found and found.entry(name).shape == tuple(weight.shape)
                for name, weight in made.named_parameters()
            )
    except (OSError, ValueError, KeyError, RuntimeError):
        # What the library cannot make sense of is told by loading it whole.
        return False


class WeightReader(Protocol):
    """Whatever gives a model's weights by name, such as a dequantizing reader."""

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of that name."""

    def entry(self, name: str) -> TensorEntry:
        """What a header would say of it."""

    def read(self, name: str) -> Tensor:
        """One tensor, float, as the library's model wants its shape."""


def streamed_logits(
    model: Path,
    windows: Sequence[Sequence[int]],
    *,
    threads: int,
    reader: WeightReader | None = None,
) -> Iterator[npt.NDArray[np.float32]]:
    """
    Float32 logits `[T, V]` of each window, in order.

    Args:
        model: A checkpoint that `can_stream`.
        windows: Token ids; all of one length.
        threads: Threads of a product; 0 takes torch's default.
        reader: Gives other weights under the same names; None takes the model's own.

    Raises:
        SourceInvalid: The checkpoint's files are broken.
    """
    import numpy as np
    import torch

    if threads > 0:
        torch.set_num_threads(threads)
    group = max(1, GROUP_TOKENS // len(windows[0]))
    with (
        torch.inference_mode(),
        CheckpointReader(model) as own,
        _skeleton(model) as made,
    ):
        _fill_on_demand(made, reader or own)
        for start in range(0, len(windows), group):
            some = [list(window) for window in windows[start : start + group]]
            ids_NT = torch.tensor(some)
            hidden = made.base_model(input_ids=ids_NT, use_cache=False)
            hidden_NTD = hidden.last_hidden_state
            for index in range(len(some)):
                # The head is the model's own, with all that it does to logits; what
                # it gets from below was computed already.
                hidden.last_hidden_state = hidden_NTD[index : index + 1]
                with _answering(made.base_model, hidden):
                    output = made(input_ids=ids_NT[index : index + 1], use_cache=False)
                yield np.asarray(output.logits[0].numpy(), dtype=np.float32)
                del output


@contextmanager
def _skeleton(model: Path) -> Iterator[Any]:
    """
    The library's model in float32 with weights that were never written.

    Memory that nobody wrote takes no room; buffers are computed as ever. None where
    this version of the library cannot leave weights alone.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        from transformers.initialization import no_init_weights
    except ImportError:
        yield None
        return
    import torch

    config = AutoConfig.from_pretrained(model, local_files_only=True)
    with no_init_weights():
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    # Leaving weights alone also leaves a tied head apart from its embedding.
    made.tie_weights()
    try:
        yield made
    finally:
        del made
        gc.collect()


def _blocks(made: Any) -> Any:
    """The decoder's blocks: the longest list of modules of the model below the head."""
    import torch

    lists = [m for m in made.base_model.modules() if isinstance(m, torch.nn.ModuleList)]
    return max(lists, key=len, default=None)


def _fill_on_demand(made: Any, reader: WeightReader) -> None:
    """Read what stands outside the blocks now, and each block when it is called."""
    import torch

    blocks = _blocks(made)
    empty = torch.empty(0)
    names = {id(weight): name for name, weight in made.named_parameters()}
    inside = {id(weight) for weight in blocks.parameters()}

    def read(module: Any) -> None:
        for weight in module.parameters():
            weight.data = reader.read(names[id(weight)]).float()

    def drop(module: Any) -> None:
        for weight in module.parameters():
            weight.data = empty

    for weight in made.parameters():
        if id(weight) not in inside:
            weight.data = reader.read(names[id(weight)]).float()
    for block in blocks:
        drop(block)
        block.register_forward_pre_hook(lambda module, _: read(module))
        block.register_forward_hook(lambda module, _, __: drop(module))


@contextmanager
def _answering(module: Any, answer: Any) -> Iterator[None]:
    """Let a module give one answer, whatever it is asked."""
    module.forward = lambda *_, **__: answer
    try:
        yield
    finally:
        del module.forward

"""Writes every tensor of a checkpoint into one file of the stored type."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lmi_build.errors import SourceInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from lmi_build.events import Emit
    from lmi_build.spi import Job

KEPT = (
    "architectures",
    "head_dim",
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "tie_word_embeddings",
    "vocab_size",
)


def run(job: Job, emit: Emit) -> None:
    """
    Fill `job.out` with `weights.safetensors` and `config.json`.

    Raises:
        SourceInvalid: `compile.checkpoint-broken`: a file cannot be read.
    """
    import numpy as np
    from safetensors.numpy import save_file

    del emit
    source = job.inputs["checkpoint"]
    stored = np.dtype(str(job.params["stored_dtype"]))
    try:
        config: dict[str, Any] = json.loads((source / "config.json").read_bytes())
        tensors = {name: value.astype(stored) for name, value in _tensors(source)}
    except (OSError, ValueError) as error:
        raise SourceInvalid(
            f"the checkpoint cannot be read: {error}",
            code="compile.checkpoint-broken",
            hints=("run `lmi-build cache verify`, then build again",),
        ) from error
    rope = config.get("rope_parameters") or {}
    kept = {name: config[name] for name in KEPT if name in config}
    kept["rope_theta"] = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    kept["eos_token_id"] = config.get("eos_token_id")
    save_file(tensors, job.out / "weights.safetensors")
    text = json.dumps(kept, indent=2, sort_keys=True) + "\n"
    (job.out / "config.json").write_text(text, encoding="utf-8")


def _tensors(source: Path) -> Iterator[tuple[str, Any]]:
    """Yield tensors in float32; bfloat16 is the upper half of one."""
    import numpy as np

    kinds = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    for path in sorted(source.glob("*.safetensors")):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, row in sorted(header.items()):
            begin, end = (8 + length + place for place in row["data_offsets"])
            values = np.frombuffer(data[begin:end], kinds[row["dtype"]])
            if row["dtype"] == "BF16":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            yield name, values.astype(np.float32).reshape(row["shape"])

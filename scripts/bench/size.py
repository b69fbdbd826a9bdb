"""
Time of sizing: combinations of instance, ranks, batch and bits in a second.

    python scripts/bench/size.py [MODEL]

The model is a folder; without one, a Llama 3.1 8B of shapes alone. Each combination is
one call of `fit`, lines, verdict and all; making the tables is told apart.
"""

from __future__ import annotations

import sys
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build import registry
from lmi_build.catalog.instances import instances
from lmi_build.catalog.runtimes import runtimes
from lmi_build.plan.sizes import place_of, subject_of
from lmi_build.sizing.fit import fit
from lmi_build.values.bounds import Bounds
from lmi_build.values.model import ModelFacts, TensorFact, geometry_from_config
from lmi_build.values.recipe import QuantSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
SPECS = (
    QuantSpec(),
    QuantSpec(method="int8", bits=8),
    QuantSpec(method="gptq", bits=4, group_size=128),
    QuantSpec(method="awq", bits=4, group_size=128, sym=False),
)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
NUM_WANTED = 2000


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Tensors of the Llama."""
    hidden, wide, key = 4096, 14336, 1024
    yield "model.embed_tokens.weight", (128256, hidden)
    yield "lm_head.weight", (128256, hidden)
    yield "model.norm.weight", (hidden,)
    for index in range(32):
        block = f"model.layers.{index}"
        for name, shape in (
            ("self_attn.q_proj", (hidden, hidden)),
            ("self_attn.k_proj", (key, hidden)),
            ("self_attn.v_proj", (key, hidden)),
            ("self_attn.o_proj", (hidden, hidden)),
            ("mlp.gate_proj", (wide, hidden)),
            ("mlp.up_proj", (wide, hidden)),
            ("mlp.down_proj", (hidden, wide)),
            ("input_layernorm", (hidden,)),
            ("post_attention_layernorm", (hidden,)),
        ):
            yield f"{block}.{name}.weight", shape


def llama() -> ModelFacts:
    """Llama 3.1 8B, from its published shapes."""
    tensors = tuple(
        TensorFact(name=name, dtype="bfloat16", shape=shape, file="model.safetensors")
        for name, shape in shapes()
    )
    return ModelFacts(
        kind="folder",
        source="Llama 3.1 8B",
        location="",
        revision="",
        geometry=geometry_from_config(LLAMA),
        config=LLAMA,
        files=(),
        tensors=tensors,
        dtype="bfloat16",
    )


def main() -> None:
    """Print both times."""
    if len(sys.argv) > 1:
        from bench.folder_facts import folder_facts

        facts = folder_facts(Path(sys.argv[1]))
    else:
        facts = llama()
    begin = time.perf_counter()
    subjects = [subject_of(facts, spec, registry.quantizer) for spec in SPECS]
    tables = time.perf_counter() - begin
    rows = [row for row in instances().values() if row.accelerator == "gpu"]
    combinations = [
        (row, tp, batch, subject)
        for row, tp, batch, subject in product(rows, (1, 2, 4, 8), BATCHES, subjects)
        if tp <= row.num_devices
    ]
    verdicts: dict[str, int] = {}
    begin = time.perf_counter()
    for row, tp, batch, subject in combinations:
        bounds = Bounds(max_input_len=4096, max_output_len=1024, max_batch_size=batch)
        report = fit(subject, bounds, place_of(row, runtimes()["vllm"], tp=tp))
        verdicts[report.verdict] = verdicts.get(report.verdict, 0) + 1
    seconds = time.perf_counter() - begin
    count = len(combinations)
    print(f"{facts.source}: {len(facts.tensors)} tensors, 4 tables in {tables:.3f} s")
    print(f"{count} combinations in {seconds:.3f} s: {verdicts}")
    print(f"{NUM_WANTED} in {seconds / count * NUM_WANTED:.3f} s")


if __name__ == "__main__":
    main()

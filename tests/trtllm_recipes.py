"""Recipes of engines as plain values, for tests of how they are lowered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from llama_8b import LLAMA_8B
from lmi_build.backends.trtllm.algorithms import choose
from lmi_build.backends.trtllm.lowering import EnginePlan, lower_engine
from lmi_build.backends.trtllm.models import trtllm_models
from lmi_build.catalog.instances import instance
from lmi_build.catalog.releases import Release, releases
from lmi_build.values.bounds import Bounds
from lmi_build.values.quant import QuantScheme
from lmi_build.values.recipe import CompileSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.digest import JSONValue

LLAMA = LLAMA_8B
BOUNDS = Bounds(max_input_len=2048, max_output_len=512, max_batch_size=16)


def scheme(packing: str, bits: int, **changes: object) -> QuantScheme:
    """A scheme with the usual rest."""
    values: dict[str, object] = {
        "weight_bits": bits,
        "weight_dtype": "float" if packing == "none" else "int",
        "group_size": -1,
        "sym": True,
        "activation_bits": 16,
        "packing": packing,
        **changes,
    }
    return QuantScheme(**values)  # type: ignore[arg-type]


# What the methods of a recipe leave, by the names used in golden files.
SCHEMES: Mapping[str, QuantScheme] = {
    "none": scheme("none", 16),
    "gptq": scheme("gptq", 4, group_size=128),
    "awq": scheme("awq", 4, group_size=128, sym=False),
    "int8": scheme("int-quantized", 8),
    "w8a8-dynamic": scheme(
        "int-quantized",
        8,
        activation_bits=8,
        activation_dtype="int",
        activation_scheme="dynamic",
    ),
    "w8a8-static": scheme(
        "int-quantized",
        8,
        activation_bits=8,
        activation_dtype="int",
        activation_scheme="static",
    ),
    "w8a8-static-tensor": scheme(
        "int-quantized",
        8,
        activation_bits=8,
        activation_dtype="int",
        activation_scheme="static",
        granularity="tensor",
    ),
    "int8-int8-cache": scheme("int-quantized", 8, kv_cache_dtype="int8"),
}


def engine_releases() -> tuple[Release, ...]:
    """Every release that builds engines, one per name."""
    return tuple(row for row in releases().values() if row.flags)


def lowered(
    release: Release,
    method: str = "none",
    *,
    architecture: str = "LlamaForCausalLM",
    bounds: Bounds = BOUNDS,
    spec: CompileSpec | None = None,
    target: str = "ml.g5.12xlarge",
) -> EnginePlan:
    """One engine, lowered."""
    model = trtllm_models()[architecture]
    return lower_engine(
        bounds,
        LLAMA,
        model=model,
        algorithm=choose(SCHEMES[method], model, release),
        release=release,
        instance=instance(target),
        dtype="bfloat16",
        spec=spec or CompileSpec(backend="tensorrt-llm", target=target),
    )


@dataclass(frozen=True)
class Wish:
    """Bounds and options as a user might write them."""

    bounds: Bounds
    options: Mapping[str, JSONValue] = field(default_factory=dict)


def wishes() -> st.SearchStrategy[Wish]:
    """Any bounds, with options that bear on them."""
    lengths = st.one_of(st.integers(1, 300), st.integers(1, 200_000))
    bounds = st.builds(
        Bounds,
        max_input_len=lengths,
        max_output_len=lengths,
        max_batch_size=st.integers(1, 3000),
        max_num_tokens=st.one_of(st.none(), st.integers(1, 400_000)),
        max_beam_width=st.integers(1, 8),
    )
    options = st.fixed_dictionaries(
        {},
        optional={
            "tokens_per_block": st.sampled_from([8, 32, 64, 128]),
            "use_paged_context_fmha": st.sampled_from(["enable", "disable"]),
            "context_fmha": st.sampled_from(["enable", "disable"]),
        },
    )
    return st.builds(Wish, bounds=bounds, options=options)

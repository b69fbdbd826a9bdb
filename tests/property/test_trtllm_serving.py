"""Laws of serving: every bound of a recipe arrives unchanged, and nothing else does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmi_build.backends.java_properties import java_properties
from lmi_build.backends.trtllm.bounds import EngineBounds
from lmi_build.backends.trtllm.layout import Placement, artifact_layout
from lmi_build.backends.trtllm.serving_keys import serving_problems, serving_properties
from lmi_build.backends.trtllm.startup import startup
from lmi_build.catalog.releases import releases
from lmi_build.package.properties import parse_properties, render_properties
from trtllm_folders import (
    TOKENIZER_CONFIG,
    engine_config,
    engine_files,
    folder_of,
)

if TYPE_CHECKING:
    from lmi_build.catalog.releases import Release

SERVED = [
    pytest.param(row, kind, id=f"{row.lmi}-{kind}")
    for row in releases().values()
    if row.properties
    for kind in row.artifacts
]
DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
# Keys that say how, not how much.
HANDLER_KEYS = {
    "engine",
    "option.entryPoint",
    "option.rolling_batch",
    "option.async_mode",
    "option.mpi_mode",
    "option.pipeline_parallel_degree",
}


def naive(data: bytes) -> dict[str, str]:
    """The container's Python reader: each line cut at its first equals sign."""
    entries = {}
    for line in data.decode().splitlines():
        if line.strip() and not line.startswith("#"):
            key, value = line.split("=", 1)
            entries[key.strip()] = value.strip()
    return entries


@st.composite
def placements(draw: st.DrawFn, kind: str) -> Placement:
    """A valid recipe's bounds and parallelism."""
    inputs, outputs = draw(st.integers(1, 1 << 20)), draw(st.integers(1, 1 << 20))
    num_tokens = draw(st.integers(1, 1 << 20))
    return Placement(
        kind=kind,
        bounds=EngineBounds(
            max_input_len=inputs,
            max_output_len=outputs,
            max_seq_len=inputs + outputs,
            max_batch_size=draw(st.integers(1, 4096)),
            max_num_tokens=num_tokens,
            opt_num_tokens=None,
            max_beam_width=draw(st.integers(1, 16)),
            paged_context_fmha=num_tokens < inputs,
            chunked_context=num_tokens < inputs,
        ),
        tensor_parallel_size=draw(st.sampled_from([1, 2, 4, 8])),
        pipeline_parallel_size=draw(st.sampled_from([1, 2])),
        kv_cache_fraction=draw(st.sampled_from([0.5, 0.85, 0.9, 0.95])),
        kv_cache_reuse=draw(st.booleans()),
        attention_window=draw(st.sampled_from([0, 0, 1024, 4096])),
    )


@pytest.mark.parametrize(("release", "kind"), SERVED)
@settings(max_examples=30)
@given(data=st.data(), dtype=st.sampled_from(sorted(DTYPES)))
def test_every_bound_arrives_unchanged(
    release: Release, kind: str, data: st.DataObject, dtype: str
) -> None:
    """In each key that the release reads, for both readers, and in no other."""
    place = data.draw(placements(kind))
    if list(serving_problems(release, place)):
        assert place.pipeline_parallel_size > 1
        return
    text = render_properties(serving_properties(release, place, dtype=dtype))
    entries = parse_properties(text)
    bounds = place.bounds
    expected = {
        "max_input_len": str(bounds.max_input_len),
        "max_output_len": str(bounds.max_output_len),
        "max_seq_len": str(bounds.max_input_len + bounds.max_output_len),
        "max_batch_size": str(bounds.max_batch_size),
        "max_num_tokens": str(bounds.max_num_tokens),
        "max_beam_width": str(bounds.max_beam_width),
        "tensor_parallel_size": str(place.tensor_parallel_size),
        "pipeline_parallel_size": str(place.pipeline_parallel_size),
        "dtype": DTYPES[dtype] if release.layout == "triton" else dtype,
        "kv_cache_fraction": str(place.kv_cache_fraction),
        "kv_cache_reuse": "true" if place.kv_cache_reuse else "false",
        "chunked_context": "true" if bounds.chunked_context else "false",
        "attention_window": f"[{place.attention_window}]",
        "backend": "pytorch",
    }
    unsaid = {
        "backend": kind != "hf-quantized",
        "attention_window": not place.attention_window,
    }
    read = {
        name: f"option.{key}"
        for name, key in release.properties.items()
        if not unsaid.get(name)
    }

    assert {name: entries[key] for name, key in read.items()} == {
        name: expected[name] for name in read
    }
    assert set(entries) <= {*read.values(), *HANDLER_KEYS}
    assert java_properties(text) == naive(text) == entries


@pytest.mark.parametrize(
    ("release", "kind"), [row for row in SERVED if "engine" in row.values]
)
@settings(max_examples=15)
@given(data=st.data())
def test_what_is_laid_out_is_loaded(
    release: Release, kind: str, data: st.DataObject
) -> None:
    """Whatever the bounds and ranks, its release compiles nothing of an engine."""
    place = data.draw(placements(kind))
    assume(not list(serving_problems(release, place)))
    layout = artifact_layout(release, place)
    at = "" if layout.engine_dir == "." else f"{layout.engine_dir}/"
    beside = "" if layout.tokenizer_dir == "." else f"{layout.tokenizer_dir}/"
    config = engine_config(
        version=release.trtllm,
        tp=place.tensor_parallel_size,
        pp=place.pipeline_parallel_size,
        max_batch_size=place.bounds.max_batch_size,
        max_num_tokens=place.bounds.max_num_tokens,
    )
    texts = {
        **engine_files(config, at=at),
        **layout.files,
        f"{beside}tokenizer.json": "{}",
        f"{beside}tokenizer_config.json": TOKENIZER_CONFIG,
        "serving.properties": render_properties(
            serving_properties(release, place, dtype="float16")
        ).decode(),
    }
    found = startup(folder_of(texts), release.lmi, trtllm=release.trtllm)

    assert found.outcome == "loads", found.reason
    assert set(layout.expected()) <= set(texts)

"""Laws of memory: every byte of the model lies somewhere, and bounds only add."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llama_8b import LLAMA_8B
from lmi_build.backends.neuronx.heads import head_terms, lay_out
from lmi_build.backends.neuronx.memory import (
    AMP_BYTES,
    MemoryTerms,
    core_memory,
    disk_bytes,
    explain_core,
    explain_host,
    host_memory,
    parameters_of,
)
from lmi_build.backends.neuronx.tnx_models import tnx_models
from lmi_build.values.model import ModelGeometry
from neuronx_sizes import ROWS, geometries

GIB = 1024**3
sizes = st.sampled_from([1, 2, 4, 6, 8, 12, 16, 24, 32])


@st.composite
def memory_terms(draw: st.DrawFn, model_type: str | None = None) -> MemoryTerms:
    """A decoder with lengths, batch and layout."""
    geometry = draw(geometries(model_type))
    tp = draw(sizes)
    terms = head_terms(
        geometry, tensor_parallel_size=tp, row=draw(st.sampled_from(ROWS))
    )
    contexts = draw(st.lists(st.integers(1, 8192), max_size=5, unique=True))
    return MemoryTerms(
        geometry=geometry,
        model=tnx_models()[geometry.model_type],
        heads=lay_out(terms),
        tensor_parallel_size=tp,
        amp=draw(st.sampled_from(sorted(AMP_BYTES))),
        int8=draw(st.booleans()),
        on_device_embedding=draw(st.booleans()),
        weight_tiling=draw(st.booleans()),
        num_experts=8 if geometry.model_type == "mixtral" else 0,
        batch_size=draw(st.integers(1, 64)),
        cache_positions=draw(st.integers(1, 16_384)),
        contexts=tuple(sorted(contexts)),
        context_batch_size=draw(st.integers(1, 8)),
        num_graphs=draw(st.integers(1, 30)),
    )


@given(
    terms=memory_terms(),
    name=st.sampled_from(
        ["batch_size", "cache_positions", "context_batch_size", "num_graphs"]
    ),
    more=st.integers(1, 1000),
)
def test_every_bound_adds(terms: MemoryTerms, name: str, more: int) -> None:
    """More requests, positions, prompts at once or graphs never take less."""
    larger = replace(terms, **{name: getattr(terms, name) + more})

    small, large = core_memory(terms), core_memory(larger)

    assert large.total_bytes >= small.total_bytes
    assert large.weight_bytes == small.weight_bytes
    if name in {"batch_size", "cache_positions"}:
        assert large.cache_bytes > small.cache_bytes


@given(terms=memory_terms(), longer=st.integers(1, 100_000))
def test_a_longer_prompt_takes_more(terms: MemoryTerms, longer: int) -> None:
    """The longest context bucket decides what one pass takes."""
    last = max(terms.contexts, default=0)

    small = core_memory(terms)
    large = core_memory(replace(terms, contexts=(*terms.contexts, last + longer)))

    assert large.scratch_bytes >= small.scratch_bytes
    assert large.cache_bytes == small.cache_bytes


@given(terms=memory_terms(), layers=st.integers(1, 20))
def test_deeper_and_wider_models_take_more(terms: MemoryTerms, layers: int) -> None:
    """Every part grows with the layers, the vocabulary and the MLP."""
    geometry = terms.geometry
    small = core_memory(terms)
    deeper = replace(geometry, num_layers=geometry.num_layers + layers)
    wider = replace(geometry, intermediate_size=geometry.intermediate_size + 4096)
    broader = replace(geometry, vocab_size=geometry.vocab_size + 4096)

    assert core_memory(replace(terms, geometry=deeper)).cache_bytes > small.cache_bytes
    assert core_memory(replace(terms, geometry=wider)).mlp_bytes > small.mlp_bytes
    found = core_memory(replace(terms, geometry=broader))
    assert found.vocabulary_bytes > small.vocabulary_bytes
    assert found.mlp_bytes == small.mlp_bytes


@given(terms=memory_terms())
def test_cores_together_hold_the_whole_model(terms: MemoryTerms) -> None:
    """Padding and replication only add to what the model has."""
    core, tp, geometry = core_memory(terms), terms.tensor_parallel_size, terms.geometry
    hidden, kv = geometry.hidden_size, geometry.num_key_value_heads * geometry.head_dim
    attention = geometry.num_layers * hidden * (2 * hidden + 2 * kv)
    matrices = {"plain": 2, "gated": 3, "experts": 3 * terms.num_experts}
    mlp = matrices[terms.model.mlp] * hidden * geometry.intermediate_size
    head = hidden * geometry.vocab_size

    assert tp * core.attention_bytes >= attention * terms.linear_bytes
    assert tp * core.mlp_bytes >= geometry.num_layers * mlp * terms.linear_bytes
    assert tp * core.vocabulary_bytes >= head * terms.amp_bytes


@given(
    group=st.sampled_from([1, 2, 4]),
    tp=st.sampled_from([1, 2, 4, 8]),
    layers=st.integers(1, 40),
    amp=st.sampled_from(sorted(AMP_BYTES)),
)
def test_nothing_is_added_where_everything_divides(
    group: int, tp: int, layers: int, amp: str
) -> None:
    """Then the cores hold each weight once, and each a copy of the norms."""
    heads, hidden, width, vocabulary = 8 * group, 8 * group * 64, 1024, 4096
    geometry = ModelGeometry(
        architecture="LlamaForCausalLM",
        model_type="llama",
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=width,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    each = [(hidden, hidden)] * 2 + [(8 * 64, hidden)] * 2 + [(width, hidden)] * 3
    weights = parameters_of([*each * layers, (vocabulary, hidden)])
    terms = MemoryTerms(
        geometry=geometry,
        model=tnx_models()["llama"],
        heads=lay_out(head_terms(geometry, tensor_parallel_size=tp, row="0.12")),
        tensor_parallel_size=tp,
        amp=amp,
        int8=False,
        on_device_embedding=False,
        batch_size=1,
        cache_positions=128,
        contexts=(128,),
        context_batch_size=1,
        num_graphs=2,
    )

    core = core_memory(terms)

    norms = (2 * layers + 1) * hidden * 4
    assert core.weight_bytes * tp == weights * AMP_BYTES[amp] + tp * norms
    cached = 2 * layers * 128 * 8 * 64 * AMP_BYTES[amp]
    assert core.cache_bytes * tp == cached


@given(terms=memory_terms())
def test_rounded_weights_take_less(terms: MemoryTerms) -> None:
    """Eight bits and a scale for each output are less than sixteen bits."""
    rounded, kept = (core_memory(replace(terms, int8=on)) for on in (True, False))
    assume(terms.geometry.hidden_size >= 64)

    assert rounded.attention_bytes < kept.attention_bytes
    assert rounded.vocabulary_bytes == kept.vocabulary_bytes
    assert rounded.cache_bytes == kept.cache_bytes


@given(terms=memory_terms(), wish=st.booleans())
def test_embeddings_go_where_they_are_told(terms: MemoryTerms, *, wish: bool) -> None:
    """On the cores they take vocabulary memory, on the host none."""
    found = core_memory(replace(terms, on_device_embedding=wish))
    host = core_memory(replace(terms, on_device_embedding=False))

    assert (found.vocabulary_bytes > host.vocabulary_bytes) == wish
    assert found.attention_bytes == host.attention_bytes


@given(
    terms=memory_terms(),
    parameters=st.integers(10**6, 10**11),
    memory=st.integers(GIB, 4000 * GIB),
    device=st.booleans(),
)
def test_workers_fit_the_host(
    *, terms: MemoryTerms, parameters: int, memory: int, device: bool
) -> None:
    """One process more than fits would not; never more than there are graphs."""
    host = host_memory(terms, parameters=parameters, has_device=device)

    workers = host.workers(memory)

    assert 0 <= workers <= terms.num_graphs
    if workers:
        assert host.needed(workers) <= memory
    if workers < terms.num_graphs:
        assert host.needed(workers + 1) > memory * 0.9
    assert len(explain_host(host, memory_bytes=memory)) == 2


@given(terms=memory_terms(), parameters=st.integers(10**6, 10**11))
def test_without_a_device_the_host_holds_more(
    terms: MemoryTerms, parameters: int
) -> None:
    """The shards that would lie on the cores stay, the cache with them."""
    on, off = (
        host_memory(terms, parameters=parameters, has_device=device)
        for device in (True, False)
    )

    assert off.weight_bytes >= on.weight_bytes
    assert off.process_bytes == on.process_bytes


def llama_8b(tp: int, *, graphs: int = 8) -> MemoryTerms:
    """Llama 3.1 8B in bfloat16."""
    return MemoryTerms(
        geometry=LLAMA_8B,
        model=tnx_models()["llama"],
        heads=lay_out(head_terms(LLAMA_8B, tensor_parallel_size=tp, row="0.12")),
        tensor_parallel_size=tp,
        amp="bf16",
        int8=False,
        on_device_embedding=True,
        batch_size=8,
        cache_positions=4096,
        contexts=(128, 1024, 2048),
        context_batch_size=1,
        num_graphs=graphs,
    )


@pytest.mark.parametrize(("memory", "fits"), [(32, False), (128, True), (384, True)])
def test_an_8b_model_does_not_compile_in_32_gib(memory: int, *, fits: bool) -> None:
    """What was seen on trn1.2xlarge, and that larger hosts do it."""
    host = host_memory(llama_8b(2), parameters=8_030_261_248, has_device=True)

    assert bool(host.workers(memory * GIB)) == fits


def test_a_known_model_on_known_cores() -> None:
    """Llama 3.1 8B over 8 cores: 2 GB of weights each, and no head twice."""
    terms = llama_8b(8)
    core = core_memory(terms)

    weights = 32 * 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336) * 2 // 8
    head, embedding = 4096 * 128256 * 2 // 8, 4096 * 128256 * 4 // 8
    assert core.weight_bytes == weights + head + embedding + 65 * 4096 * 4
    assert core.cache_bytes == 2 * 32 * 8 * 4096 * 8 * 128 * 2 // 8
    assert len(explain_core(core, core_bytes=16 * GIB)) == 4


@given(terms=memory_terms(), parameters=st.integers(10**6, 10**11))
def test_disk_holds_the_weights(terms: MemoryTerms, parameters: int) -> None:
    """As they came, or as every core holds them."""
    core = core_memory(terms)
    came = disk_bytes(terms, parameters=parameters, presharded=False)
    sharded = disk_bytes(terms, parameters=parameters, presharded=True)

    assert came > parameters * terms.amp_bytes
    assert sharded > core.weight_bytes * terms.tensor_parallel_size

"""Laws of the lengths that Neuron graphs are compiled for, and of where they run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmi_build.backends.neuronx.buckets import (
    SEQUENCE_SHARD_PAD,
    SMALLEST_BUCKET,
    bucket_of,
    chosen_context_buckets,
    context_buckets,
    count_graphs,
    lmi_context_buckets,
    padded_positions,
    sequence_parallel_misfits,
    serial_finding,
    serial_tokens,
    token_buckets,
)
from lmi_build.backends.neuronx.topology import (
    core_memory_bytes,
    devices_needed,
    legal_sizes,
    nearest_size,
    topology_finding,
    topology_problems,
)
from lmi_build.catalog.instances import instances

lengths = st.integers(1, 200_000)
bucket_lists = st.lists(lengths, min_size=1, max_size=6, unique=True)
neuron = st.sampled_from(
    [name for name, row in instances().items() if row.accelerator == "neuron"]
)
# Sizes that a catalogued machine joins, from the sources that `topology.py` names.
KNOWN = {
    "ml.inf2.xlarge": (1, 2),
    "ml.inf2.24xlarge": (1, 2, 4, 6, 8, 10, 12),
    "ml.inf2.48xlarge": (1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24),
    "ml.trn1.2xlarge": (1, 2),
    "ml.trn1.32xlarge": (1, 2, 8, 16, 32),
    "ml.trn1n.32xlarge": (1, 2, 8, 16, 32),
    "ml.trn2.48xlarge": (1, 2, 4, 8, 16, 32, 64),
}


@given(n_positions=lengths)
def test_token_buckets_double_up_to_the_promise(n_positions: int) -> None:
    """The last bucket is what was asked for; none before is a waste."""
    found = token_buckets(n_positions)

    assert found[-1] == n_positions
    assert found[:-1] == tuple(SMALLEST_BUCKET << i for i in range(len(found) - 1))
    assert all(short < n_positions for short in found[:-1])
    assert len(found) == 1 or found[-2] * 2 >= n_positions


@given(buckets=bucket_lists)
def test_lists_are_only_sorted(buckets: list[int]) -> None:
    """What a recipe lists is what is compiled."""
    assert token_buckets(buckets) == tuple(sorted(buckets))
    assert context_buckets(buckets, (1,)) == tuple(sorted(buckets))


@given(n_positions=lengths, estimate=st.integers(-3, 5000))
def test_contexts_default_to_half_and_can_be_switched_off(
    n_positions: int, estimate: int
) -> None:
    """None is half of each token bucket, a number is itself, nothing is none."""
    tokens = token_buckets(n_positions)

    assert context_buckets(None, tokens) == tuple(size // 2 for size in tokens)
    expected = (estimate,) if estimate > 0 else ()
    assert context_buckets(estimate, tokens) == expected


@given(max_input_len=lengths, max_output_len=lengths)
def test_default_buckets_leave_long_prompts_to_single_tokens(
    max_input_len: int, max_output_len: int
) -> None:
    """The vendor's default serves half of the cache; ours serves every prompt."""
    n_positions = max_input_len + max_output_len
    default = context_buckets(None, token_buckets(n_positions))

    left = serial_tokens(default, max_input_len)

    assert left == max(0, max_input_len - n_positions // 2)
    assert (serial_finding(default, max_input_len) is None) == (left == 0)
    assert serial_tokens(chosen_context_buckets(max_input_len), max_input_len) == 0
    assert serial_finding((), max_input_len) is not None


@given(max_input_len=lengths, data=st.data())
def test_chosen_buckets_pad_little(max_input_len: int, data: st.DataObject) -> None:
    """Every promised prompt has a bucket at most twice as long, from 128 up."""
    buckets = chosen_context_buckets(max_input_len)
    length = data.draw(st.integers(1, max_input_len))

    found = bucket_of(buckets, length)

    assert buckets[-1] == max_input_len
    assert found is not None
    assert length <= found < max(2 * length, SMALLEST_BUCKET + 1)


@given(buckets=bucket_lists, length=lengths)
def test_a_length_falls_into_the_smallest_bucket_that_holds_it(
    buckets: list[int], length: int
) -> None:
    """Or into the largest, whose rest is then left over."""
    rising = sorted(buckets)
    holding = [bucket for bucket in rising if bucket >= length]

    found = bucket_of(rising, length)

    assert found == (holding[0] if holding else rising[-1])
    assert serial_tokens(rising, length) == max(0, length - rising[-1])
    assert bucket_of((), length) is None


@given(n_positions=lengths)
def test_what_lmi_takes_ends_with_the_whole_length(n_positions: int) -> None:
    """LMI's own list holds every prompt, with wide steps."""
    found = lmi_context_buckets(n_positions)

    assert found[-1] == n_positions
    assert list(found) == sorted(set(found))
    assert set(found[:-1]) <= {128, *(1024 << i for i in range(10))}


@given(n_positions=lengths, buckets=bucket_lists, split=st.booleans())
def test_splitting_the_sequence_adds_room_to_the_largest_only(
    *, n_positions: int, buckets: list[int], split: bool
) -> None:
    """128 positions more, of a number as of a list."""
    extra = SEQUENCE_SHARD_PAD if split else 0
    *rest, last = sorted(buckets)

    assert padded_positions(n_positions, shard_over_sequence=split) == (
        n_positions + extra
    )
    assert padded_positions(buckets, shard_over_sequence=split) == (*rest, last + extra)


@given(buckets=bucket_lists, threshold=lengths, tp=st.integers(1, 64))
def test_long_buckets_must_split_evenly(
    buckets: list[int], threshold: int, tp: int
) -> None:
    """A bucket is named exactly when it is split and does not split evenly."""
    found = sequence_parallel_misfits(
        buckets, threshold=threshold, tensor_parallel_size=tp
    )

    for bucket in buckets:
        assert (bucket in found) == (bucket > threshold and bucket % tp != 0)


@given(
    tokens=bucket_lists,
    contexts=st.lists(lengths, max_size=5, unique=True),
    batches=st.lists(st.integers(1, 64), min_size=1, max_size=3, unique=True),
    unrolled=st.booleans(),
    embedded=st.booleans(),
    broadcasts=st.booleans(),
)
def test_graphs_are_buckets_times_batches(
    *,
    tokens: list[int],
    contexts: list[int],
    batches: list[int],
    unrolled: bool,
    embedded: bool,
    broadcasts: bool,
) -> None:
    """Every kind is counted once, and more buckets are never fewer graphs."""

    def count(contexts: list[int]) -> int:
        return count_graphs(
            tokens,
            contexts,
            batch_sizes=batches,
            context_batch_sizes=[1],
            context_unrolled=unrolled,
            on_device_embedding=embedded,
            broadcasts=broadcasts,
        ).total

    each = 1 if unrolled else 2 + embedded
    assert count([]) == len(tokens) * len(batches)
    assert count(contexts) - count([]) == len(contexts) * (each + broadcasts)


@pytest.mark.parametrize("name", KNOWN)
def test_legal_sizes_are_those_the_vendor_names(name: str) -> None:
    """The runtime's rule, machine by machine."""
    assert legal_sizes(instances()[name]) == KNOWN[name]


@given(name=neuron, size=st.integers(1, 100))
def test_a_size_is_refused_exactly_when_it_is_not_legal(name: str, size: int) -> None:
    """With a size that is legal and as near as any in the hint."""
    found = instances()[name]
    sizes = legal_sizes(found)

    problems = list(topology_problems(found, size))

    assert bool(problems) == (size not in sizes)
    near = nearest_size(found, size)
    assert near in sizes
    assert all(abs(near - size) <= abs(legal - size) for legal in sizes)
    for problem in problems:
        expected = sizes[-1] if size > found.num_cores else near
        assert f"tensor_parallel_size: {expected}" in problem.hint


@given(name=neuron, data=st.data())
def test_devices_hold_the_cores(name: str, data: st.DataObject) -> None:
    """Every core lies on a listed device and no device is listed for nothing."""
    found = instances()[name]
    size = data.draw(st.sampled_from(legal_sizes(found)))

    devices = devices_needed(found, size)

    count = len(devices.paths)
    assert (count - 1) * found.cores_per_device < size <= count * found.cores_per_device
    assert devices.paths == tuple(f"/dev/neuron{index}" for index in range(count))
    assert count <= found.num_devices


def test_other_machines_have_no_sizes() -> None:
    """A GPU has nothing to split over, and nothing is said of it here."""
    gpu = instances()["ml.g5.2xlarge"]

    assert legal_sizes(gpu) == ()
    assert list(topology_problems(gpu, 4)) == []
    with pytest.raises(ValueError, match="no Neuron device"):
        nearest_size(gpu, 4)


def test_a_rare_ring_is_told_but_not_refused() -> None:
    """Ten cores work on inf2, though no guide names them."""
    inf2 = instances()["ml.inf2.24xlarge"]

    assert list(topology_problems(inf2, 10)) == []
    assert "10 cores" in (topology_finding(inf2, 10) or "")
    assert topology_finding(inf2, 12) is None
    assert topology_finding(instances()["ml.trn1.32xlarge"], 16) is None


def test_core_memory() -> None:
    """16 GiB on the second generation, 24 GiB on the third."""
    gib = 1024**3

    assert core_memory_bytes(instances()["ml.inf2.xlarge"]) == 16 * gib
    assert core_memory_bytes(instances()["ml.trn2.48xlarge"]) == 24 * gib

"""Laws of sizing: monotone, exactly invertible, and the sum of its lines."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from lmi_build.catalog.runtimes import Interval, runtimes
from lmi_build.sizing.beside import rounding_line
from lmi_build.sizing.cache import CacheShape
from lmi_build.sizing.change import changes
from lmi_build.sizing.fit import (
    CANNOT,
    FITS,
    MOST_TOKENS,
    QUESTIONS,
    Place,
    fit,
    largest,
)
from lmi_build.sizing.lines import Adapters, Subject
from lmi_build.sizing.memory import memory_lines, total
from lmi_build.sizing.weights import (
    COLUMNS,
    FUSED,
    KEYS,
    ROWS,
    UNKNOWN,
    VOCABULARY,
    WHOLE,
    HeadCounts,
    WeightClass,
    WeightTable,
    linear_bytes,
    rank_bytes,
)
from lmi_build.values.bounds import Bounds
from lmi_build.values.model import ModelGeometry
from lmi_build.values.quant import QuantScheme

MIB = 1 << 20
POSITIONS = 5000
CACHE = "key-value cache"
FIELDS = ("max_input_len", "max_output_len", "max_batch_size", "max_beam_width")
QUESTION_FIELDS = dict(
    zip(QUESTIONS, ("max_batch_size", "max_input_len", "max_output_len"), strict=True)
)


def linear(
    part: str, split: str, shape: tuple[int, ...], *, quantizable: bool = True
) -> WeightClass:
    return WeightClass(
        part=part,
        split=split,
        dtype="bfloat16",
        shape=shape,
        quantizable=quantizable,
        count=2,
    )


@st.composite
def schemes(draw: st.DrawFn) -> QuantScheme:
    packing = draw(
        st.sampled_from(
            [
                "none",
                "gptq",
                "awq",
                "pack-quantized",
                "int-quantized",
                "float-quantized",
            ]
        )
    )
    bits = {"none": 16, "gptq": draw(st.sampled_from([2, 3, 4, 8])), "awq": 4}.get(
        packing, 8
    )
    return QuantScheme(
        weight_bits=bits,
        weight_dtype="float" if packing == "float-quantized" else "int",
        group_size=draw(st.sampled_from([-1, 32, 128])),
        sym=draw(st.booleans()),
        activation_bits=16,
        packing=packing,
        kv_cache_dtype=draw(st.sampled_from(["auto", "fp8"])),
    )


@st.composite
def subjects(draw: st.DrawFn) -> Subject:
    """A model, at times with adapters and with another model that drafts for it."""
    adapters = draw(
        st.none()
        | st.builds(Adapters, count=st.integers(1, 8), rank=st.sampled_from([8, 64]))
    )
    draft = draw(st.none() | models())
    return replace(draw(models()), adapters=adapters, draft=draft)


@st.composite
def models(draw: st.DrawFn) -> Subject:
    kv_heads = draw(st.sampled_from([1, 2, 4, 8]))
    heads = HeadCounts(
        num_heads=kv_heads * draw(st.integers(1, 4)), num_kv_heads=kv_heads, head_dim=64
    )
    hidden = 128 * draw(st.integers(1, 6))
    width = heads.num_heads * heads.head_dim
    key = kv_heads * heads.head_dim
    rows = [
        linear("embedding", VOCABULARY, (1000, hidden), quantizable=False),
        linear("norm", WHOLE, (hidden,), quantizable=False),
        linear("attention", ROWS, (hidden, width)),
        linear("mlp", COLUMNS, (3 * hidden, hidden)),
        *draw(
            st.sampled_from(
                [
                    [linear("attention", FUSED, (width + 2 * key, hidden))],
                    [linear("attention", KEYS, (key, hidden))],
                    [linear("other", UNKNOWN, (hidden, hidden))],
                ]
            )
        ),
    ]
    tied = draw(st.booleans())
    if draw(st.booleans()):
        rows.append(linear("head", VOCABULARY, (1000, hidden), quantizable=False))
    sliding = draw(st.integers(0, 4))
    latent = draw(st.sampled_from([0, 0, 96]))
    return Subject(
        table=WeightTable(classes=tuple(rows), heads=heads, tied=tied),
        cache=CacheShape(
            num_full=4 - sliding,
            num_sliding=sliding,
            window=100 if sliding else 0,
            num_kv_heads=kv_heads,
            head_dim=64,
            latent_width=latent,
            expanded_width=160 if latent else 0,
            num_heads=heads.num_heads,
            rotary_dim=32 if latent else draw(st.sampled_from([0, 64])),
        ),
        geometry=ModelGeometry(
            architecture="LlamaForCausalLM",
            model_type="llama",
            num_layers=4,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_attention_heads=heads.num_heads,
            num_key_value_heads=kv_heads,
            head_dim=64,
            vocab_size=1000,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=tied,
        ),
        scheme=draw(schemes()),
    )


BOUNDS = st.builds(
    Bounds,
    max_input_len=st.integers(1, 2000),
    max_output_len=st.integers(1, 2000),
    max_batch_size=st.integers(1, 64),
    max_num_tokens=st.none() | st.integers(1, 20_000),
    max_beam_width=st.integers(1, 3),
)
PLACES = st.builds(
    lambda name, tp, pp, low, more: Place(
        runtime=runtimes()[name],
        tp=tp,
        pp=pp,
        capacity=Interval(low=low * MIB, high=(low + more) * MIB),
    ),
    st.sampled_from(sorted(runtimes())),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.sampled_from([1, 1, 2, 3]),
    st.integers(200, 6000),
    st.integers(0, 500),
)


@given(subjects(), BOUNDS, PLACES)
def test_the_total_is_the_sum_of_the_lines(
    subject: Subject, bounds: Bounds, place: Place
) -> None:
    """Nothing is counted that has no line, and no line is a negative number."""
    report = fit(subject, bounds, place)

    assert report.total.low == sum(line.bytes.low for line in report.lines)
    assert report.total.high == sum(line.bytes.high for line in report.lines)
    assert all(0 <= line.bytes.low <= line.bytes.high for line in report.lines)
    assert all(line.formula and line.source for line in report.lines)


@given(subjects(), BOUNDS, PLACES, st.sampled_from(FIELDS), st.integers(1, 3000))
def test_more_of_a_bound_never_needs_less(
    subject: Subject, bounds: Bounds, place: Place, field: str, more: int
) -> None:
    """Each line by itself grows with every bound."""
    larger = replace(bounds, **{field: getattr(bounds, field) + more})
    before = memory_lines(subject, bounds, place.runtime, tp=place.tp, pp=place.pp)
    after = memory_lines(subject, larger, place.runtime, tp=place.tp, pp=place.pp)

    for old, new in zip(before, after, strict=True):
        assert old.name == new.name
        assert old.bytes.low <= new.bytes.low
        assert old.bytes.high <= new.bytes.high


@settings(deadline=None)
@given(subjects(), BOUNDS, PLACES, st.sampled_from(QUESTIONS), st.booleans())
def test_the_largest_bound_is_the_inverse_of_the_fit(
    subject: Subject,
    bounds: Bounds,
    place: Place,
    question: str,
    endless: bool,  # noqa: FBT001 - drawn
) -> None:
    """The answer fits and one more does not, or is the end of what is looked at."""
    if endless:
        geometry = replace(subject.geometry, max_position_embeddings=0)
        subject = replace(subject, geometry=geometry)
    found = largest(question, subject, bounds, place)
    field = QUESTION_FIELDS[question]
    certain = replace(subject, table=replace(subject.table, unknown=()))

    def verdict(value: int) -> str:
        return fit(certain, replace(bounds, **{field: value}), place).verdict

    assert 0 <= found.certain <= found.possible <= found.limit <= MOST_TOKENS
    if found.certain:
        assert verdict(found.certain) == FITS
    if found.certain < found.limit:
        assert verdict(found.certain + 1) != FITS
    if found.possible:
        assert verdict(found.possible) != CANNOT
    if found.possible < found.limit:
        assert verdict(found.possible + 1) == CANNOT


@settings(deadline=None)
@given(subjects(), BOUNDS, PLACES)
def test_every_change_that_is_named_fits(
    subject: Subject, bounds: Bounds, place: Place
) -> None:
    """A hint that does not help is worse than none."""
    for change in changes(subject, bounds, place):
        field = change.path.removeprefix("bounds.")
        changed = replace(bounds, **{field: int(change.value)})

        assert fit(subject, changed, place).verdict == FITS
        assert int(change.value) < getattr(bounds, field)


@given(st.integers(1, 40), st.integers(1, 40), schemes())
def test_a_wider_linear_takes_no_less(
    outputs: int, inputs: int, scheme: QuantScheme
) -> None:
    """Codes, scales and zero points grow with both sides."""
    if scheme.packing == "none":
        scheme = replace(scheme, packing="gptq", weight_bits=4)
    size = linear_bytes(32 * outputs, 32 * inputs, scheme)

    assert size <= linear_bytes(32 * outputs + 32, 32 * inputs, scheme)
    assert size <= linear_bytes(32 * outputs, 32 * inputs + 32, scheme)


@given(subjects(), BOUNDS, PLACES, st.integers(1, 4))
def test_stages_hold_all_layers_together(
    subject: Subject, bounds: Bounds, place: Place, pp: int
) -> None:
    """The fullest stage holds its share at least, the emptiest no more than that."""

    def layers(stages: int) -> Interval:
        lines = memory_lines(subject, bounds, place.runtime, tp=place.tp, pp=stages)
        parts = [line for line in lines if line.name in {"weights: mlp", CACHE}]
        return Interval(
            low=sum(line.bytes.low for line in parts),
            high=sum(line.bytes.high for line in parts),
        )

    whole, staged = layers(1), layers(pp)

    assert staged.high * pp >= whole.high
    assert staged.low * pp <= whole.low
    assert staged.high <= whole.high


@given(subjects(), BOUNDS, PLACES, st.integers(1, 8), st.sampled_from([8, 16, 64]))
def test_what_is_served_beside_a_model_never_needs_less(
    subject: Subject, bounds: Bounds, place: Place, count: int, rank: int
) -> None:
    """Adapters, more of them, a higher rank and a draft model each add, or nothing."""
    bare = replace(subject, adapters=None, draft=None)
    few = replace(bare, adapters=Adapters(count=count, rank=rank))
    more = replace(bare, adapters=Adapters(count=count + 1, rank=rank))
    higher = replace(bare, adapters=Adapters(count=count, rank=2 * rank))
    drafted = replace(few, draft=bare)

    def need(asked: Subject) -> Interval:
        runtime = place.runtime
        return total(memory_lines(asked, bounds, runtime, tp=place.tp, pp=place.pp))

    pairs = [(bare, few), (few, more), (few, higher), (few, drafted)]
    for less, larger in pairs:
        assert need(less).low <= need(larger).low
        assert need(less).high <= need(larger).high


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 4096),
    st.sampled_from(sorted(runtimes())),
)
def test_rotary_tables_and_groups_of_layers_only_grow(
    full: int, sliding: int, window: int, name: str
) -> None:
    """No layer is lost in a group, and none is counted where none slides."""
    shape = CacheShape(
        num_full=full, num_sliding=sliding, window=window, num_kv_heads=1, head_dim=8
    )
    alone = replace(shape, num_sliding=0, num_full=full + sliding)
    found = shape.most_layers(runtimes()[name])

    assert found >= full + sliding
    assert found <= 2 * (full + sliding)
    assert alone.most_layers(runtimes()[name]) == full + sliding


def allocated(size: int) -> int:
    """What PyTorch takes for a tensor in a fresh segment, by its own rule."""
    page, small, large = 512, MIB, 2 * MIB
    asked = -(-size // page) * page
    if asked <= small:
        return asked
    segment = 20 * MIB if asked < 10 * MIB else -(-asked // large) * large
    return segment if segment - asked <= small else asked


@given(subjects(), st.sampled_from([1, 2, 4]))
def test_blocks_are_rounded_no_more_than_is_said(subject: Subject, tp: int) -> None:
    """Each tensor by itself, or all of a part in one: both lie in the interval."""
    plain = replace(subject.scheme, packing="none", weight_bits=16)
    subject = replace(subject, scheme=plain)
    runtime = runtimes()["vllm"]
    found = rounding_line(subject, runtime, tp=tp).bytes
    sizes = [
        (rank_bytes(item, subject.table, plain, runtime, tp), item.count)
        for item in subject.table.classes
    ]
    apart = sum(n * (allocated(size // n) - size // n) for size, n in sizes)

    assert found.low == 0
    assert apart <= found.high

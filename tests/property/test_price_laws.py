"""Laws of prices that are derived from EC2's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lmi_build.catalog.prices import (
    BASES,
    SAGEMAKER,
    PriceTable,
    find_price,
    markups,
    price_ratios,
)
from lmi_build.values.ranges import Range

REGION = "us-east-1"
USD = st.floats(0.01, 500)
TABLES = st.builds(
    lambda basis, usd: PriceTable(
        region=REGION,
        jobs=("endpoint",) if basis == SAGEMAKER else (),
        basis=basis,
        source="s",
        checked="2026-11-01",
        usd_per_hour={"x.large": usd},
    ),
    st.sampled_from(BASES),
    USD,
)


@given(st.lists(TABLES, max_size=6).map(tuple))
def test_the_nearest_basis_holds_and_of_it_the_last_table(
    tables: tuple[PriceTable, ...],
) -> None:
    """SageMaker's own before EC2's on demand before a block's, whatever the order."""
    found = find_price(tables, "ml.x.large", region=REGION)
    kinds = {table.basis for table in tables}
    expected = next((basis for basis in BASES if basis in kinds), None)
    if found is None:
        assert expected is None
        return
    last = [table for table in tables if table.basis == expected][-1]

    assert found.basis == expected
    assert found.listed_usd_per_hour == last.usd_per_hour["x.large"]
    assert found.derived == (expected != SAGEMAKER)
    assert (found.usd_per_hour.low == found.usd_per_hour.high) != found.derived
    assert find_price(tables, "x.large", region="eu-west-1") is None


@given(st.sampled_from(BASES[1:]), USD, st.floats(1, 10))
def test_a_dearer_ec2_price_is_never_derived_to_less(
    basis: str, usd: float, factor: float
) -> None:
    low, high = markups()[basis].times(usd), markups()[basis].times(usd * factor)

    assert usd <= low.low <= high.low
    assert low.high <= high.high


@given(st.dictionaries(st.sampled_from("abcdef"), st.tuples(USD, st.floats(1, 2))))
def test_ratios_are_those_of_rows_that_both_have(
    rows: dict[str, tuple[float, float]],
) -> None:
    ours = PriceTable(
        region=REGION,
        basis="ec2",
        source="s",
        checked="2026-11-01",
        usd_per_hour={name: usd for name, (usd, _) in rows.items()} | {"only": 1.0},
    )
    theirs = PriceTable(
        region=REGION,
        jobs=("training",),
        source="s",
        checked="2026-11-01",
        usd_per_hour={f"ml.{name}": usd * by for name, (usd, by) in rows.items()},
    )
    found = dict(price_ratios((theirs, ours)))

    assert set(found) == set(rows)
    for name, (_, factor) in rows.items():
        assert abs(found[name] - factor) < 1e-9


@given(USD, USD, USD, USD)
def test_products_of_ranges_hold_every_product(
    first: float, second: float, third: float, fourth: float
) -> None:
    one = Range(low=min(first, second), high=max(first, second))
    other = Range(low=min(third, fourth), high=max(third, fourth))
    product = one.by(other)

    for left in (one.low, one.high):
        for right in (other.low, other.high):
            assert product.low <= left * right <= product.high

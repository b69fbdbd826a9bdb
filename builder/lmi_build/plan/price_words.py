"""What is said of a price that is not SageMaker's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.catalog.prices import (
    CAPACITY_BLOCK,
    SAGEMAKER,
    SEARCHED,
    markups,
    price_ratios,
    shipped_price_tables,
)

if TYPE_CHECKING:
    from lmi_build.catalog.instances import Instance
    from lmi_build.catalog.prices import Price
    from lmi_build.sizing.cost import Setup


def way_words(setup: Setup) -> str:
    """
    A way in words, with a word on a price that is not SageMaker's own.

    Args:
        setup: Of an alternative.
    """
    what = ", ".join(setup.changes) or "as it is"
    derived = setup.price_basis != SAGEMAKER
    return f"{what} (price derived from EC2's)" if derived else what


def derived_note(price: Price, instance: Instance) -> str:
    """
    What a derived price is made of, and how to replace it.

    Args:
        price: It is derived.
        instance: Whose it is.
    """
    factor = markups()[price.basis]
    num = len(price_ratios(shipped_price_tables()))
    between = f"{factor.low:.4g} to {factor.high:.4g} times that"
    if price.basis == CAPACITY_BLOCK:
        bought = (
            " for Capacity Blocks, bought ahead by the day. None on demand was found,"
            " and none since 2025 of a training plan, SageMaker's form of it. It is"
            f" taken as {between}: from the block's own to the most that SageMaker asks"
            " over EC2 on demand"
        )
    else:
        bought = (
            f" on demand. It is taken as {between}, the least and the most of {num}"
            " pairs in which both are known"
        )
    return (
        f"the price is derived: SageMaker's of `{instance.name}` in {price.region} was"
        f" not found by {SEARCHED}; EC2's is {price.listed_usd_per_hour:g}{bought}."
        f" Yours replaces it: `--catalog FILE` with {price_row(instance, price.region)}"
    )


def price_row(instance: Instance, region: str) -> str:
    """
    What a user's file needs for a price.

    Args:
        instance: Whose it is.
        region: Where.
    """
    return (
        f'[prices.mine] with region = "{region}", jobs = ["endpoint"], source, checked'
        f' and usd_per_hour = {{ "{instance.name.removeprefix("ml.")}" = N }}'
    )

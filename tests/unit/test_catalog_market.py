"""Devices, prices and a user's own tables over them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from lmi_build.catalog.devices import PRODUCTS, device_row, devices
from lmi_build.catalog.instances import instances
from lmi_build.catalog.market import overlay, read_market, shipped_market
from lmi_build.catalog.prices import ENDPOINT, find_price, price_table, price_tables
from lmi_build.errors import UsageInvalid
from lmi_build.values.ranges import Range

if TYPE_CHECKING:
    from pathlib import Path

DATE = re.compile(r"20\d\d-\d\d-\d\d")
FAMILY = """
[instances.g9]
accelerator = "gpu"
device = "RTX 9000"
device_memory_mib = 98304
cores_per_device = 1
compute_capability = "13.0"
own_disk = true
source = "our account team"
uses = ["training", "endpoint"]
sizes = { xlarge = [1, 8, 64], 4xlarge = [4, 32, 256] }
network_gbps = { 4xlarge = 100 }
"""
DEVICE = """
[devices."RTX 9000"]
memory_gbps = 2500.5
dense_tflops = { fp16 = 800, fp8 = 1600 }
link = "PCIe 6.0 x16"
link_gbps = 256
source = "data sheet"
checked = "2026-10-01"
"""
PRICES = """
[prices.negotiated]
region = "eu-central-1"
jobs = ["endpoint"]
source = "contract 7"
checked = "2026-10-01"
usd_per_hour = { "ml.g9.xlarge" = 3.5, "g5.xlarge" = 1 }
"""


def one(usd: float) -> Range:
    """A price that was published."""
    return Range(low=usd, high=usd)


def test_every_device_has_a_source_and_a_date() -> None:
    for name, device in devices().items():
        assert device.source, name
        assert DATE.fullmatch(device.checked), name
        assert set(device.dense_tflops) <= set(PRODUCTS), name


def test_8_bit_products_are_never_slower() -> None:
    for name, device in devices().items():
        for product in PRODUCTS:
            assert device.flops_per_second(product) >= device.flops_per_second("fp16")
        with pytest.raises(ValueError, match="none of"):
            device.flops_per_second("fp4")
        assert device.memory_bytes_per_second > 1e11, name


def test_instances_name_rows_that_exist() -> None:
    """All but those of g7, whose device has no row for want of a source."""
    market = shipped_market()
    without = {
        row.name.split(".")[1]
        for row in market.instances.values()
        if row.accelerator != "none" and market.device(row) is None
    }

    assert without == {"g7"}
    assert set(devices()) == {
        row.rates for row in market.instances.values() if market.device(row)
    }


def test_the_two_sizes_of_a100_differ_in_bandwidth() -> None:
    market = shipped_market()
    small = market.device(market.instances["ml.p4d.24xlarge"])
    large = market.device(market.instances["ml.p4de.24xlarge"])

    assert small is not None
    assert large is not None
    assert small.memory_gbps < large.memory_gbps
    assert small.dense_tflops == large.dense_tflops


def test_prices_are_of_known_instances() -> None:
    for table in price_tables():
        assert table.source
        assert DATE.fullmatch(table.checked)
        assert {f"ml.{name}" for name in table.usd_per_hour} <= set(instances())


def test_every_instance_has_a_price_and_those_are_derived_that_are_named() -> None:
    """The file says which have no price of SageMaker's anywhere."""
    market = shipped_market()
    derived = set()
    for row in market.instances.values():
        prices = [market.price(row, region=name) for name in market.regions(row)]
        assert prices, row.name
        if all(price is not None and price.derived for price in prices):
            derived.add(row.name.split(".")[1])

    assert derived == {"g7", "p5e", "p6-b200", "p6-b300", "trn1n", "trn2"}


def test_larger_sizes_of_a_family_do_not_cost_less() -> None:
    """A check of the copied numbers: more devices or vCPUs, and not a lower price."""
    market = shipped_market()
    rows = [
        (row, price.usd_per_hour.high)
        for row in instances().values()
        if (price := market.price(row, region="us-east-1")) is not None
    ]
    for row, lower in rows:
        for other, higher in rows:
            if row.name.split(".")[1] != other.name.split(".")[1]:
                continue
            if other.num_devices >= row.num_devices and (
                other.num_vcpus >= row.num_vcpus
            ):
                assert higher >= lower, (row.name, other.name)


def test_sources_agree_where_two_tell_the_same() -> None:
    """To within two cents, as prices are rounded; a wrong copy shows here."""
    told: dict[tuple[str, str, str], list[float]] = {}
    for table in price_tables():
        for job in table.jobs:
            for name, number in table.usd_per_hour.items():
                told.setdefault((table.region, job, name), []).append(number)

    assert sum(len(numbers) > 1 for numbers in told.values()) > 50
    for where, numbers in told.items():
        assert max(numbers) - min(numbers) < 0.02, where


def test_the_price_of_another_job_is_named() -> None:
    tables = price_tables()
    own = find_price(tables, "g5.xlarge", region="us-east-1")
    other = find_price(tables, "ml.g7e.2xlarge", region="us-east-1")

    assert own is not None
    assert (own.job, own.usd_per_hour) == (ENDPOINT, one(1.408))
    assert other is not None
    assert other.job == "training"
    there = find_price(tables, "ml.p5en.48xlarge", region="us-east-2")
    assert there is not None
    assert (there.job, there.usd_per_hour) == (ENDPOINT, one(72.795))
    assert find_price(tables, "ml.g5.xlarge", region="mars-north-1") is None


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty.toml"
    empty.write_text("# nothing\n")

    assert read_market(empty) == shipped_market()
    assert read_market(None) is shipped_market()


def test_a_users_rows_lie_over_those_shipped() -> None:
    base = shipped_market()
    market = overlay(base, FAMILY + DEVICE + PRICES, "mine.toml")
    added = market.instances["ml.g9.4xlarge"]
    device = market.device(added)
    price = market.price(market.instances["ml.g5.xlarge"], region="eu-central-1")

    assert (added.num_devices, added.network_gbps) == (4, 100)
    assert market.instances["ml.g9.xlarge"].network_gbps is None
    assert device is not None
    assert device.memory_gbps == 2500.5
    assert price is not None
    assert (price.usd_per_hour, price.source) == (one(1), "contract 7")
    assert market.regions(market.instances["ml.g9.xlarge"]) == ("eu-central-1",)
    kept = {n: r for n, r in market.instances.items() if not n.startswith("ml.g9")}
    assert kept == dict(base.instances)
    # The value that was laid over is as it was.
    assert "ml.g9.xlarge" not in base.instances


def test_a_later_price_holds() -> None:
    again = PRICES.replace("negotiated", "newer").replace("= 3.5", "= 3.25")
    market = overlay(shipped_market(), FAMILY + PRICES + again, "mine.toml")
    price = market.price(market.instances["ml.g9.xlarge"], region="eu-central-1")

    assert price is not None
    assert price.usd_per_hour == one(3.25)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FAMILY.replace("gpu", "tpu"), ("[instances.g9]", '`accelerator` is "tpu"')),
        (FAMILY.replace("sizes", "size"), ("[instances.g9]", "unknown keys ['size']")),
        (FAMILY.replace("[1, 8, 64]", "[1, 8]"), ("[instances.g9]", "`sizes.xlarge`")),
        (FAMILY.replace('"training"', '"t"'), ("[instances.g9]", "`uses` has ['t']")),
        (DEVICE.replace("2500.5", "-1"), ("[devices.RTX 9000]", "`memory_gbps` is -1")),
        (DEVICE.replace("fp16", "fp12"), ("[devices.RTX 9000]", "has ['fp12']")),
        (DEVICE.replace("fp16", "int8"), ("[devices.RTX 9000]", "lacks `fp16`")),
        (DEVICE.replace("1600", "nan"), ("[devices.RTX 9000]", "`dense_tflops.fp8`")),
        (DEVICE.replace("256", '"256"'), ("[devices.RTX 9000]", "`link_gbps`")),
        (PRICES.replace("= 1 ", "= 0 "), ("[prices.negotiated]", ".g5.xlarge` is 0")),
        (PRICES.replace("endpoint", "hosting"), ("[prices.negotiated]", "`jobs` has")),
        (
            PRICES.replace('["endpoint"]', "[]"),
            ("[prices.negotiated]", "names no `jobs`"),
        ),
        (
            FAMILY + PRICES.replace("g5.xlarge", "g5.xlarg"),
            ("[prices.negotiated]", "`usd_per_hour.g5.xlarg`", "`ml.g5.xlarge`?"),
        ),
        (PRICES.replace("eu-central-1", "eu"), ("[prices.negotiated]", "`region`")),
        (PRICES.replace("2026-10-01", "today"), ("[prices.negotiated]", "`checked`")),
        (PRICES + 'basis = "spot"\n', ("[prices.negotiated]", '`basis` is "spot"')),
        (PRICES + 'basis = "ec2"\n', ("[prices.negotiated]", "names `jobs`")),
        ("[prices]\nnegotiated = 3\n", ("[prices]", "`negotiated` is 3")),
        ("[discounts]\n", ("discounts",)),
        ("loose = 3\n", ("loose",)),
        ("[instances\n", ("line 1",)),
    ],
)
def test_a_wrong_row_is_told_with_its_place(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageInvalid) as caught:
        read_market(path)

    assert caught.value.code == "catalog.invalid"
    assert str(path) in caught.value.message
    for word in words:
        assert word in caught.value.message


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(UsageInvalid) as caught:
            read_market(path)
        assert caught.value.code == "catalog.unreadable"


def test_readers_name_their_place() -> None:
    with pytest.raises(ValueError, match=r"here, `checked`"):
        price_table(
            {
                "region": "us-east-1",
                "jobs": ["endpoint"],
                "source": "s",
                "checked": "1",
                "usd_per_hour": {},
            },
            where="here",
        )
    with pytest.raises(ValueError, match="here lacks"):
        device_row({}, where="here")

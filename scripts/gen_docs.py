"""
Write docs/reference/ from the code and its data.

Commands, errors, recipe fields, the support matrix, releases and instance types.

`scripts/gen_docs.py` writes; `--check` only compares, and fails when a page is stale.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from docs_recipe import recipe_page
from docs_releases import releases_page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.catalog.instances import Instance
    from lmi_build.catalog.market import Market

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
NOTE = "<!-- Written by scripts/gen_docs.py; change the code, not this page. -->\n"


def main() -> int:
    """Write or check every page; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = []
    for name, text in pages().items():
        path = REFERENCE / name
        if path.is_file() and path.read_text("utf-8") == text:
            continue
        stale.append(name)
        if not arguments.check:
            REFERENCE.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    if stale and arguments.check:
        sys.stderr.write(f"stale: {', '.join(stale)}; run scripts/gen_docs.py\n")
        return 1
    return 0


def pages() -> dict[str, str]:
    """File name to text of every page."""
    return {
        "cli.md": NOTE + cli_page(),
        "errors.md": NOTE + errors_page(),
        "instances.md": NOTE + instances_page(),
        "recipe.md": NOTE + recipe_page(),
        "releases.md": NOTE + releases_page(),
        "support.md": NOTE + support_page(),
    }


def cli_page() -> str:
    """The help of every command."""
    from lmi_build.cli.main import cli

    parts = ["# Commands\n", help_block(cli, "lmi-build")]
    parts += [help_block(command, name) for name, command in commands(cli, "lmi-build")]
    return "\n".join(parts)


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below a group, with its full name."""
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


def help_block(command: click.Command, name: str) -> str:
    """One command's help as a section."""
    context = click.Context(
        command,
        info_name=name,
        max_content_width=88,
        terminal_width=88,
        help_option_names=["-h", "--help"],  # as the group sets it for all
    )
    return f"## `{name}`\n\n```\n{command.get_help(context)}\n```\n"


def errors_page() -> str:
    """Every error code with cause and fix."""
    from lmi_build.catalog.error_docs import load_error_docs

    lines = [
        "# Error codes\n",
        "A code is stable: scripts may depend on it.",
        "`lmi-build explain CODE` prints the same.\n",
    ]
    room = ""
    for code, doc in load_error_docs().items():
        if code.partition(".")[0] != room:
            room = code.partition(".")[0]
            lines.append(f"\n## {room}\n")
        lines.append(f"### `{code}`\n\n{doc.title[:1].upper()}{doc.title[1:]}.\n")
        lines.append(f"- Cause: {doc.cause}\n- Fix: {doc.fix}\n")
    return "\n".join(lines)


def support_page() -> str:
    """What each provider does, and how far that was proven."""
    from lmi_build import registry
    from lmi_build.catalog.support import load_support

    lines = [
        "# Support matrix\n",
        (
            "*run*: built and used in the test suite. *read*: written against real"
            " signatures and formats, not run. *absent*: not in this version.\n"
        ),
        "| provider | kind | offers | proof | note |\n| --- | --- | --- | --- | --- |",
    ]
    installed = {
        **{n: registry.quantizer(n).info for n in registry.names(registry.QUANTIZERS)},
        **{n: registry.backend(n).info for n in registry.names(registry.BACKENDS)},
    }
    for row in load_support():
        info = installed.get(row.name)
        offers = ", ".join((*info.methods, *info.targets)) if info else row.offers
        lines.append(
            f"| `{row.name}` | {row.kind} | {offers} | {row.proof} | {row.note} |"
        )
    return "\n".join([*lines, *architecture_lines()]) + "\n"


def instances_page() -> str:
    """Instance types, their devices and their prices."""
    from lmi_build.catalog.instances import GIB, instances
    from lmi_build.catalog.market import shipped_market
    from lmi_build.catalog.prices import DEFAULT_REGION

    market = shipped_market()
    lines = [
        "# Instance types\n",
        (
            "What is known of SageMaker's instances, as EC2 describes them; *cores* are"
            " the parts a model can be split into, *USD/h* is an hour of an endpoint in"
            f" {DEFAULT_REGION} on demand, with \\* where only another job's price is"
            " known; a range is derived from EC2's price. A table of your own lays over"
            " all of it: [cost](../concepts/cost.md).\n"
        ),
        (
            "| instance | devices | GiB of each | cores | compute capability | vCPUs |"
            " host GiB | Gbit/s | USD/h | SageMaker takes it for |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in instances().values():
        device = f"{row.num_devices} {row.device}" if row.device else ""
        memory = f"{row.device_memory_bytes / GIB:.4g}" if row.device else ""
        network = "" if row.network_gbps is None else f"{row.network_gbps:g}"
        usd = price_cell(market, row)
        lines.append(
            f"| `{row.name}` | {device} | {memory} | {row.num_cores or ''} |"
            f" {row.compute_capability} | {row.num_vcpus} | {row.memory_bytes // GIB} |"
            f" {network} | {usd} | {', '.join(row.uses)} |"
        )
    return "\n".join([*lines, *device_lines(), *price_lines()]) + "\n"


def price_cell(market: Market, row: Instance) -> str:
    """An hour of an instance in the usual region, else in one where it is known."""
    from lmi_build.catalog.prices import CAPACITY_BLOCK, DEFAULT_REGION

    region = DEFAULT_REGION
    known = market.regions(row)
    if known and region not in known:
        region = known[0]
    price = market.price(row, region=region)
    if price is None:
        return ""
    low, high = price.usd_per_hour.low, price.usd_per_hour.high
    usd = f"{low:.4g} to {high:.4g}" if price.derived else f"{low:g}"
    usd += "" if price.job == "endpoint" else " *"
    usd += "" if region == DEFAULT_REGION else f" in {region}"
    return usd + (", bought ahead" if price.basis == CAPACITY_BLOCK else "")


def device_lines() -> list[str]:
    """Peak rates of devices."""
    from lmi_build.catalog.devices import PRODUCTS, devices

    rows = [
        "\n## Devices\n",
        (
            "Peak rates without sparsity: memory and link in GB/s (10^9 bytes; a link"
            " in both directions), products in 10^12 operations a second.\n"
        ),
        f"| device | memory | {' | '.join(PRODUCTS)} | link | | source |",
        f"| --- | --- | {'--- | ' * len(PRODUCTS)}--- | --- | --- |",
    ]
    for name, device in devices().items():
        told = [device.dense_tflops.get(product, "") for product in PRODUCTS]
        cells = [device.memory_gbps, *told, device.link, device.link_gbps or ""]
        row = " | ".join(str(cell) for cell in cells)
        rows.append(f"| {name} | {row} | {device.source} ({device.checked}) |")
    return rows


def price_lines() -> list[str]:
    """Where prices come from."""
    from lmi_build.catalog.prices import price_tables

    rows = [
        "\n## Sources of prices\n",
        "Of two for the same instance, region and job the later one holds.\n",
        "| region | jobs, or basis | instances | source |",
        "| --- | --- | --- | --- |",
    ]
    rows += [
        f"| {table.region} | {', '.join(table.jobs) or table.basis} |"
        f" {len(table.usd_per_hour)} |"
        f" {table.source} ({table.checked}) |"
        for table in price_tables()
    ]
    return rows


def architecture_lines() -> list[str]:
    """The decoders that `builtin` can walk through."""
    from lmi_build.catalog.architectures import architectures

    known = sorted(architectures().values(), key=lambda arch: arch.model_type)
    return [
        "\n## Architectures\n",
        (
            "Methods that calibrate need a map of the model. Each of these is compared"
            " with transformers, block by block, on a small random model. Without one,"
            " `int8` and `rtn` take every matrix of a numbered block but routers and"
            " position tables, T5's for example.\n"
        ),
        "| model type | `architectures` | read from |\n| --- | --- | --- |",
        *(f"| `{x.model_type}` | `{x.name}` | {x.source} |" for x in known),
    ]


if __name__ == "__main__":
    sys.exit(main())

"""`size`: what a model takes on its devices, before a machine is rented."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmi_build.cli.catalog_option import catalog_path, with_catalog
from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.page_option import need_plots, with_page, write_page
from lmi_build.cli.render import data, style, table
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from lmi_build.plan.beside import Beside
    from lmi_build.plan.sizes import BuildNeed, SizeReport
    from lmi_build.sizing.fit import Largest
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import QuantSpec, Recipe

_COLORS = {"fits": "green", "cannot fit": "red", "unproven": "yellow"}
_METHODS = ("none", "rtn", "gptq", "awq", "smoothquant", "int8", "fp8")
_FEW_BITS = 4
_BYTE_BITS = 8
_GROUP_SIZE = 128
_COUNT = click.IntRange(min=1)


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option("--model", help="Instead of a recipe: repository, folder or GGUF file.")
@click.option("--revision", default="main", show_default=True, help="Of a repository.")
@click.option("--max-input-len", type=_COUNT, help="Longest prompt, in tokens.")
@click.option("--max-output-len", type=_COUNT, help="Most new tokens.")
@click.option("--max-batch-size", type=_COUNT, help="Requests at once.")
@click.option("--max-num-tokens", type=_COUNT, help="Packed tokens of one forward.")
@click.option("--target", default="ml.g5.xlarge", show_default=True, help="Instance.")
@click.option("--method", type=click.Choice(_METHODS), default="none")
@click.option("--bits", type=click.Choice(["2", "3", "4", "8"]), help="Of a weight.")
@click.option("--group-size", type=click.IntRange(min=-1), help="-1 is a whole row.")
@click.option("--kv-cache-dtype", type=click.Choice(["auto", "int8", "fp8"]))
@click.option("--tensor-parallel-size", "tp", type=_COUNT, default=1)
@click.option("--max-loras", type=_COUNT, help="Adapters served at once.")
@click.option("--max-lora-rank", type=_COUNT, help="Of any adapter; 16 unless told.")
@click.option("--draft-model", help="Drafts tokens: repository, folder or GGUF file.")
@click.option("--runtime", default="vllm", show_default=True, help="Who serves it.")
@click.option(
    "--memory", help="Of a device, such as `24GiB`, whatever the target says."
)
@click.option(
    "--largest",
    type=click.Choice(["batch", "input", "output"]),
    help="The most of a bound that fits.",
)
@click.option("--check", is_flag=True, help="Exit with 4 where it cannot fit.")
@click.option(
    "--region",
    default="us-east-1",
    show_default=True,
    help="Of the prices of other places, on the page.",
)
@with_page
@with_catalog
@with_common_options
@click.pass_obj
def size(
    state: State,
    /,
    *,
    recipe: Path | None,
    model: str | None,
    memory: str | None,
    largest: str | None,
    check: bool,
    page: Path | None,
    catalog: Path | None,
    **told: Any,
) -> None:
    """
    Show what a model takes on each device, line by line, and whether it fits.

    Give RECIPE, or --model with its bounds. Only config.json and the headers of
    safetensors files are read.
    """
    from lmi_build import api, sizes
    from lmi_build.catalog.market import read_market
    from lmi_build.errors import UsageInvalid

    if (recipe is None) == (model is None):
        raise UsageInvalid(
            "give a recipe or `--model`, one of them",
            code="size.no-subject",
            hints=("such as `lmi-build size recipe.yaml`",),
        )
    need_plots(page)
    state.memory = memory
    settings = state.settings()
    told["memory_bytes"] = settings.memory_bytes if memory else 0
    told["market"] = read_market(catalog_path(state, catalog))
    told["beside"] = _beside(told, settings)
    facts: dict[str, ModelFacts] = {}
    if recipe is None:
        only, facts[str(model)] = _size_model(str(model), told, settings)
        reports: list[tuple[Recipe | None, SizeReport]] = [(None, only)]
    else:
        recipes = api.load_recipe(recipe, overrides=state.overrides)
        facts = api.resolve(recipes, settings, hashed=False, served=False)
        reports = [
            (each, _size_recipe(each, facts[each.name], told, settings))
            for each in recipes
        ]
    if largest is not None:
        reports = [
            (owner, sizes.largest(report, largest, owner, _of(owner, facts)))
            for owner, report in reports
        ]
    if page is not None:
        write_page(state, page, _page(reports, facts, told))
    if state.output == "text":
        click.echo("\n\n".join(_text(state, report) for _, report in reports))
    else:
        data([document(report) for _, report in reports])
    if check:
        for owner, report in reports:
            sizes.refuse(report, owner)


def _size_recipe(
    recipe: Recipe, facts: ModelFacts, told: dict[str, Any], settings: Any
) -> SizeReport:
    from lmi_build import api, sizes

    return sizes.size_recipe(
        recipe,
        facts,
        memory_bytes=told["memory_bytes"],
        host=api.host(settings),
        market=told["market"],
        beside=told["beside"],
    )


def _beside(told: dict[str, Any], settings: Any) -> Beside:
    """Adapters and a draft model, as far as options name them."""
    from lmi_build import sizes
    from lmi_build.errors import UsageInvalid
    from lmi_build.plan.beside import USUAL_RANK, Beside
    from lmi_build.sizing.lines import Adapters
    from lmi_build.values.recipe import ModelSpec

    count, rank, draft = told["max_loras"], told["max_lora_rank"], told["draft_model"]
    if rank is not None and count is None:
        raise UsageInvalid(
            f"`--max-lora-rank {rank}` says nothing of how many adapters there are",
            code="size.no-adapters",
            hints=(f"add `--max-loras 4`, or leave out `--max-lora-rank {rank}`",),
        )
    return Beside(
        adapters=Adapters(count=count, rank=rank or USUAL_RANK) if count else None,
        draft=sizes.resolve_facts(ModelSpec(source=draft), settings) if draft else None,
    )


def _page(
    reports: list[tuple[Recipe | None, SizeReport]],
    facts: dict[str, ModelFacts],
    told: dict[str, Any],
) -> str:
    """Every report on one page, each with other places."""
    from lmi_build import sizes
    from lmi_build.report.size_page import render_sizes

    compared = [
        (
            report,
            sizes.compare_places(
                report,
                facts[report.name],
                owner.quantize if owner else _quant_spec(told),
                market=told["market"],
                region=told["region"],
                recipe=owner,
            ),
        )
        for owner, report in reports
    ]
    return render_sizes(compared, region=told["region"])


def _of(owner: Recipe | None, facts: dict[str, ModelFacts]) -> ModelFacts | None:
    return facts.get(owner.name) if owner else None


def _size_model(
    model: str, told: dict[str, Any], settings: Any
) -> tuple[SizeReport, ModelFacts]:
    from lmi_build import sizes
    from lmi_build.errors import UsageInvalid
    from lmi_build.values.bounds import Bounds
    from lmi_build.values.recipe import ModelSpec

    names = ("max_input_len", "max_output_len", "max_batch_size")
    missing = [f"--{name.replace('_', '-')}" for name in names if told[name] is None]
    if missing:
        raise UsageInvalid(
            f"{', '.join(missing)} not given",
            code="size.no-bounds",
            hints=(
                "add `--max-input-len 2048 --max-output-len 512 --max-batch-size 8`",
            ),
        )
    facts = sizes.resolve_facts(
        ModelSpec(source=model, revision=told["revision"]), settings
    )
    bounds = Bounds(
        **{name: told[name] for name in names}, max_num_tokens=told["max_num_tokens"]
    )
    report = sizes.size_model(
        facts,
        _quant_spec(told),
        bounds,
        target=told["target"],
        runtime=told["runtime"],
        tp=told["tp"],
        memory_bytes=told["memory_bytes"],
        market=told["market"],
        beside=told["beside"],
    )
    return report, facts


def _quant_spec(told: dict[str, Any]) -> QuantSpec:
    from lmi_build.errors import UsageInvalid
    from lmi_build.values.recipe import QuantSpec

    method = told["method"]
    cache = told["kv_cache_dtype"] or "auto"
    if method == "none":
        unused = [name for name in ("bits", "group_size") if told[name] is not None]
        if unused:
            option = f"--{unused[0].replace('_', '-')}"
            raise UsageInvalid(
                f"`{option} {told[unused[0]]}` without `--method` changes nothing",
                code="size.no-method",
                hints=(f"add `--method gptq`, or leave out `{option}`",),
            )
        return QuantSpec(kv_cache_dtype=cache)
    few = method in {"rtn", "gptq", "awq"}
    bits = int(told["bits"] or (_FEW_BITS if few else _BYTE_BITS))
    group = told["group_size"] or (_GROUP_SIZE if few else -1)
    return QuantSpec(method=method, bits=bits, group_size=group, kv_cache_dtype=cache)


def _text(state: State, report: SizeReport) -> str:
    """A report for people."""
    found, place = report.fit, report.place
    head = f"{report.name}: {place.runtime.name}"
    if report.instance is not None:
        head += f", {report.ranks}"
    sources = dict.fromkeys(line.source for line in found.lines)
    marks = {source: f"[{number}]" for number, source in enumerate(sources, 1)}
    rows = [
        [
            line.name,
            *_ends(line.bytes.low, line.bytes.high),
            f"{line.formula} {marks[line.source]}",
        ]
        for line in found.lines
    ]
    need, capacity = found.total, found.capacity
    rows.append(["total", *_ends(need.low, need.high), "sum of the lines"])
    verdict = style(state, found.verdict, fg=_COLORS[found.verdict], bold=True)
    if capacity is not None and found.margin_bytes is not None:
        had = _ends(capacity.low, capacity.high)
        rows.append(["device", *had, "what a process can have"])
        worst, best = found.margin_bytes
        verdict += f", margin {format_bytes(worst)} to {format_bytes(best)}"
    else:
        verdict += ": the memory of the target is not known, `--memory` says it"
    tail = [
        *(f"{mark} {source}" for source, mark in marks.items()),
        f"checkpoint on disk: {format_bytes(report.checkpoint_bytes)} of tensors",
        f"verdict: {verdict}",
        f"most of it: {found.binding}",
        *(f"not certain: {why}" for why in found.unknown),
        *(f"to fit: {change.text}" for change in report.changes),
    ]
    if report.build is not None:
        tail.insert(len(marks), _build_line(report.build))
    if report.largest is not None:
        tail.append(_largest_line(report.largest))
    head_row = ["line", "from", "to", "formula"]
    return "\n".join([head, table(head_row, rows), *tail])


def _build_line(need: BuildNeed) -> str:
    """What the machine that builds must have."""
    return (
        f"to build: {format_bytes(need.ram_bytes)} of memory ({need.ram_stage}),"
        f" {format_bytes(need.disk_bytes)} of disk,"
        f" {format_bytes(need.download_bytes)} to download"
    )


def _largest_line(found: Largest) -> str:
    """The answer to `--largest`."""
    return (
        f"largest {found.question}: {found.certain} for certain, {found.possible} at"
        f" most, of {found.limit} looked at"
    )


def _ends(low: int, high: int) -> tuple[str, str]:
    return format_bytes(low), format_bytes(high)


def document(report: SizeReport) -> dict[str, Any]:
    """A report for programs."""
    return {
        "name": report.name,
        "instance": report.instance.name if report.instance else None,
        "runtime": report.place.runtime.name,
        "tensor_parallel_size": report.place.tp,
        "checkpoint_bytes": report.checkpoint_bytes,
        **report.fit.to_json(),
        "build": asdict(report.build) if report.build else None,
        "changes": [asdict(change) for change in report.changes],
        "largest": asdict(report.largest) if report.largest else None,
    }

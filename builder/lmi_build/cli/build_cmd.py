"""`build`: the main job."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmi_build import api, artifacts
from lmi_build.cli.catalog_option import knows_catalog
from lmi_build.cli.options import State, with_common_options, with_lock_options
from lmi_build.cli.progress import watching
from lmi_build.cli.render import data, say, table
from lmi_build.digest import short
from lmi_build.errors import GateFailed
from lmi_build.units import format_bytes, format_seconds
from lmi_build.values.settings import RUNNERS

if TYPE_CHECKING:
    from lmi_build.values.publish import PublishReceipt
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.result import BuildResult
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan


_KINDS = ("fetch", "quantize", "checkpoint", "compile", "package", "verify")


@click.command()
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path),
    help="Build exactly the plan that `plan --out` saved.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("artifacts"),
    show_default=True,
    help="Folder for the artifacts.",
)
@click.option(
    "--until",
    type=click.Choice(_KINDS),
    help="Stop after this stage.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="Memory that a stage may use, such as 24GiB; calibration keeps its "
    "activations on disk where they do not fit [default: what is free].",
)
@click.option(
    "--runner",
    type=click.Choice(RUNNERS),
    help="Where stages run that need a release's own toolchain: here, when this is its "
    "container, or in one that is started [default: $LMI_BUILD_RUNNER, or local].",
)
@click.option(
    "--rehearse",
    is_flag=True,
    help="Write down what a stage would do that needs another machine; the artifact "
    "cannot be published.",
)
@click.option("--no-publish", is_flag=True, help="Build and verify only.")
@knows_catalog
@with_lock_options
@with_common_options
@click.pass_obj
def build(  # noqa: PLR0913 - each is an option
    state: State,
    *,
    recipe: Path | None,
    plan_file: Path | None,
    out: Path,
    until: str | None,
    memory: str | None,
    runner: str | None,
    rehearse: bool,
    no_publish: bool,
) -> None:
    """
    Build what is missing, verify it, and publish it if the recipe says where to.

    Finished stages are kept: a build that was stopped or failed goes on where it was.
    """
    state.memory = memory
    state.runner, state.rehearse = runner, rehearse
    settings = state.settings()
    recipes: tuple[Recipe, ...] = ()
    planned, recipes = _planned(state, settings, recipe, plan_file)
    try:
        with watching(state) as emit:
            result = api.build(planned, settings, emit=emit, until=until)
    except GateFailed:
        for page in artifacts.write_failed_reports(planned, settings).values():
            say(state, f"report: {page}")
        raise
    pages = artifacts.write_reports(result, settings)
    written = {}
    if until in {None, "verify", "package"}:
        for artifact in planned.artifacts:
            written[artifact.name] = api.write_artifact(
                result, artifact.name, out, settings
            )
    receipts: dict[str, PublishReceipt] = {}
    for item in recipes:
        if item.publish is not None and not no_publish and until is None:
            tree, _ = written[item.name]
            with watching(state) as emit:
                receipts[item.name] = artifacts.publish(
                    tree, item.publish, settings, emit=emit
                )
    if state.output == "text":
        _tell(state, result, written, receipts)
        for page in pages.values():
            say(state, f"report: {page}")
    elif state.output == "json":
        reports = [{"name": name, "path": str(at)} for name, at in pages.items()]
        data(_document(result, written, receipts) | {"reports": reports})


def _planned(
    state: State, settings: Settings, recipe: Path | None, plan_file: Path | None
) -> tuple[Plan, tuple[Recipe, ...]]:
    from lmi_build.errors import UsageInvalid

    if (recipe is None) == (plan_file is None):
        raise UsageInvalid(
            "give either a recipe or `--plan FILE`",
            code="usage.invalid",
            hints=("run `lmi-build build recipe.yaml`",),
        )
    if plan_file is not None and state.lock_mode is not None:
        raise UsageInvalid(
            f"`--{state.lock_mode}` is for planning, and `--plan` is planned already",
            code="usage.invalid",
            hints=(
                f"give it to `lmi-build plan RECIPE --{state.lock_mode} --out FILE`",
            ),
        )
    if plan_file is not None:
        return api.load_plan(plan_file, state.settings()), ()
    assert recipe is not None  # noqa: S101 - one of the two is given
    recipes = api.load_recipe(recipe, overrides=state.overrides)
    return api.make_plan(recipes, settings), recipes


def _tell(
    state: State,
    result: BuildResult,
    written: dict[str, Any],
    receipts: dict[str, PublishReceipt],
) -> None:
    say(state, "\n" + stage_table(result))
    say(
        state,
        f"\n{result.num_built} built, {len(result.rows) - result.num_built} cached,"
        f" {format_seconds(result.seconds)}",
    )
    for name, (tree, digest) in written.items():
        say(state, f"artifact {name}, manifest {short(digest)}:")
        click.echo(str(tree))
    for name, receipt in receipts.items():
        say(
            state,
            f"published {name}: {receipt.uri}"
            f"  ({format_bytes(receipt.uploaded_bytes)} sent,"
            f" {format_bytes(receipt.skipped_bytes)} already there)",
        )
    if result.num_built:
        say(state, f"logs: {result.record_dir}")


def stage_table(result: BuildResult) -> str:
    """Stages with time, memory, bytes and key."""
    rows = [
        [
            row.name,
            "cached" if row.cached else "built",
            format_seconds(row.result.measure.seconds),
            f"{row.result.measure.cpu_seconds:.1f} s",
            format_bytes(row.result.measure.peak_rss_bytes),
            format_bytes(row.result.out_bytes),
            short(row.result.key),
        ]
        for row in result.rows
    ]
    head = ["stage", "", "time", "CPU", "peak RSS", "bytes", "key"]
    return table(head, rows)


def _document(
    result: BuildResult,
    written: dict[str, Any],
    receipts: dict[str, PublishReceipt],
) -> dict[str, Any]:
    return {
        "seconds": round(result.seconds, 3),
        "num_built": result.num_built,
        "record_dir": str(result.record_dir),
        "stages": [
            {
                "name": row.name,
                "kind": row.kind,
                "cached": row.cached,
                "key": row.result.key,
                "digest": row.result.digest,
                "out_bytes": row.result.out_bytes,
                **asdict(row.result.measure),
            }
            for row in result.rows
        ],
        "artifacts": [
            {"name": name, "path": str(tree), "manifest_digest": digest}
            for name, (tree, digest) in written.items()
        ],
        "published": [
            {"name": name, **asdict(receipt)} for name, receipt in receipts.items()
        ],
    }

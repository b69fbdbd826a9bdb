"""`advise`: which serving system to use, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmi_build.cli.catalog_option import catalog_path, with_catalog
from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.page_option import with_page, write_page
from lmi_build.cli.render import data, say, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.advice.advisor import Answer, Verdict
    from lmi_build.advice.rules import Finding
    from lmi_build.advice.traffic import Traffic
    from lmi_build.advise import Wishes
    from lmi_build.values.bounds import Bounds
    from lmi_build.values.recipe import Recipe

# Bounds of a written recipe where nothing says others; a short model has shorter ones.
_INPUT, _OUTPUT, _BATCH = 512, 128, 4


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option(
    "--model",
    help="A family such as `llama`, or a model's source; with RECIPE, in place of its.",
)
@click.option("--device", default="", help="gpu, neuron, cpu or any.")
@click.option("--instance", default="", help="Such as ml.g5.2xlarge.")
@click.option("--technique", default="", help="Quantization to serve, such as gptq.")
@click.option("--features", default="", help="Wanted, such as lora,streaming.")
@click.option("--life", default="", help="At least maintained, maintenance or ended.")
@click.option("--goal", default="", help="latency, throughput or cost.")
@click.option(
    "--traffic",
    default="",
    metavar="WORD|FILE",
    help="even, uneven, a log as `bounds` reads it, or the JSON that it printed.",
)
@click.option("--built", is_flag=True, help="Only what lmi-build builds for.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Requests at one time.")
@click.option(
    "--write",
    "out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a recipe for the best row; an existing file is left alone.",
)
@with_page
@with_catalog
@with_common_options
@click.pass_obj
def advise(
    state: State,
    /,
    *,
    recipe: Path | None,
    model: str | None,
    out: Path | None,
    page: Path | None,
    catalog: Path | None,
    **wishes: Any,
) -> None:
    """
    Say which serving system to use, with the rule that removed or ranked each.

    Wishes remove systems, goals and traffic rank those that remain. Nothing is
    downloaded but the model's configuration, and that only where it is not here.
    """
    from lmi_build import advise as library
    from lmi_build import api
    from lmi_build.catalog.market import read_market
    from lmi_build.errors import UsageInvalid

    market = read_market(catalog_path(state, catalog))
    found = None
    source = model or ""
    if recipe is not None:
        found = api.load_recipe(recipe, overrides=state.overrides)[0]
        source = _from_folder(found.model.source, recipe.absolute().parent)
    if not source:
        raise UsageInvalid(
            "neither RECIPE nor `--model` was given",
            code="advice.no-model",
            hints=("such as `lmi-build advise --model llama --device gpu`",),
        )
    config = library.model_config(model or source, state.settings())
    words = _wishes(wishes)
    words.check()
    log = library.read_traffic(words.traffic, state.settings())
    question = library.ask(config, words, recipe=found, market=market, log=log)
    answer = library.advise(question)
    written = None
    if out is not None:
        bounds = _bounds(log, words, found, config)
        written = _write(
            state, answer, out, source=source, config=config, bounds=bounds
        )
    if state.output == "text":
        click.echo(_text(answer, verbose=state.verbose, done=written is not None))
    else:
        data({**_document(answer), "recipe": str(out) if written else None})
    if page is not None:
        from lmi_build.report.advice_page import render_advice

        write_page(state, page, render_advice(answer))
    if written is not None:
        say(state, f"wrote {out}; next: `lmi-build plan {out}`")


def _wishes(words: dict[str, Any]) -> Wishes:
    from lmi_build.advise import Wishes

    features = [name.strip() for name in words.pop("features").split(",")]
    concurrency = words.pop("concurrency") or 0
    return Wishes(
        features=tuple(filter(None, features)), concurrency=concurrency, **words
    )


def _from_folder(source: str, folder: Path) -> str:
    """A recipe's relative path as it is called from here."""
    here = folder / source
    return str(here) if "://" not in source and here.exists() else source


def _bounds(
    log: Traffic, words: Wishes, recipe: Recipe | None, config: Mapping[str, Any]
) -> Bounds:
    """Bounds of the log, else of the recipe, else those that `init` writes."""
    from lmi_build.values.bounds import Bounds

    if recipe is not None and not log.max_input_len:
        return recipe.bounds
    most = config.get("max_position_embeddings")
    positions = most if isinstance(most, int) else _INPUT + _OUTPUT
    output = log.max_output_len or min(_OUTPUT, positions // 4)
    return Bounds(
        max_input_len=log.max_input_len or min(_INPUT, positions - output),
        max_output_len=output,
        max_batch_size=words.concurrency or log.max_batch_size or _BATCH,
    )


def _write(
    state: State,
    answer: Answer,
    out: Path,
    *,
    source: str,
    config: Mapping[str, Any],
    bounds: Bounds,
) -> Recipe:
    from lmi_build.advise_recipe import write_recipe
    from lmi_build.cli.start_cmd import slug

    local = Path(source)
    if "://" not in source and local.exists():
        source = str(local.absolute())
    technique = answer.question.technique or "none"
    return write_recipe(
        answer,
        out,
        state.settings(),
        name=slug(source.rstrip("/").rsplit("/", 1)[-1], technique),
        source=source,
        config=config,
        bounds=bounds,
    )


def _text(answer: Answer, *, verbose: bool, done: bool) -> str:
    parts = [*_kept(answer, verbose=verbose), *_gone(answer, verbose=verbose)]
    if answer.relaxations:
        lines = ["no system grants every wish; the fewest to drop:"]
        for each in answer.relaxations:
            words = " and ".join(answer.question.said(wish) for wish in each.wishes)
            lines.append(f"  {words}: then {each.winner}")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, *([] if done else _next(answer))])


def _kept(answer: Answer, *, verbose: bool) -> list[str]:
    """The rows that remain, and why the first two stand where they do."""
    if not answer.candidates:
        return []
    rows = [
        [
            f"{each.score:+d}",
            each.option.system.title,
            each.option.port.device,
            each.option.system.life.status,
            _backend(answer, each) or "-",
        ]
        for each in answer.candidates
    ]
    told = answer.candidates if verbose else answer.candidates[:2]
    head = ["score", "system", "on", "life", "lmi-build"]
    return [table(head, rows), "\n".join(_why(each) for each in told)]


def _backend(answer: Answer, verdict: Verdict) -> str:
    """The backend that builds this model for a row; empty where none does."""
    port = verdict.option.port
    return port.backend if port.builds(answer.question.family) else ""


def _why(verdict: Verdict) -> str:
    lines = [f"{verdict.option.system.title} on {verdict.option.port.device}:"]
    for name, finding in verdict.points:
        lines += [f"  {finding.points:+d} {name}: {finding.reason}"]
        lines += [f"       {finding.source.text}, {finding.source.date}"]
    return "\n".join(lines)


def _gone(answer: Answer, *, verbose: bool) -> list[str]:
    """The rows that rules removed, each with every reason."""
    removed = [each for each in answer.verdicts if each.removed]
    if not removed:
        return []
    if verbose:
        return ["\n".join(_why_gone(each) for each in removed)]
    rows = [
        [
            each.option.system.title,
            each.option.port.device,
            ", ".join(sorted({name for name, _ in each.removed})),
            "; ".join(finding.reason for _, finding in each.removed),
        ]
        for each in removed
    ]
    return [table(["removed", "on", "rule", "why"], rows)]


def _why_gone(verdict: Verdict) -> str:
    lines = [f"{verdict.option.system.title} on {verdict.option.port.device}, removed:"]
    for name, finding in verdict.removed:
        lines += [f"  {name}: {finding.reason}"]
        lines += [f"       {finding.source.text}, {finding.source.date}"]
    return "\n".join(lines)


def _next(answer: Answer) -> list[str]:
    winner = answer.winner
    if winner is None:
        return []
    if winner.option.port.builds(answer.question.family):
        return ["next: the same with `--write FILE` writes a recipe for it"]
    return [f"next: {winner.option.system.otherwise}"]


def _document(answer: Answer) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "question": asdict(answer.question),
        "winner": answer.winner.option.name if answer.winner else None,
        "rows": [
            {
                "system": each.option.system.name,
                "title": each.option.system.title,
                "device": each.option.port.device,
                "life": asdict(each.option.system.life),
                "backend": _backend(answer, each),
                "container": each.option.port.container,
                "otherwise": each.option.system.otherwise,
                "score": None if each.removed else each.score,
                "removed": [_finding(*found) for found in each.removed],
                "points": [_finding(*found) for found in each.points],
            }
            for each in answer.verdicts
        ],
        "relaxations": [asdict(each) for each in answer.relaxations],
    }


def _finding(rule: str, finding: Finding) -> dict[str, Any]:
    from dataclasses import asdict

    return {"rule": rule, **asdict(finding)}

"""`advise`: which serving system to use, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.render import data, table

if TYPE_CHECKING:
    from lmi_build.advice.advisor import Answer, Verdict
    from lmi_build.advice.rules import Finding


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option(
    "--model", help="Instead of RECIPE: a family such as `llama`, or a model's source."
)
@click.option("--device", default="", help="gpu, neuron, cpu or any.")
@click.option("--instance", default="", help="Such as ml.g5.2xlarge.")
@click.option("--technique", default="", help="Quantization to serve, such as gptq.")
@click.option("--features", default="", help="Wanted, such as lora,streaming.")
@click.option("--life", default="", help="At least maintained, maintenance or ended.")
@click.option("--goal", default="", help="latency, throughput or cost.")
@click.option(
    "--traffic", default="", help="even, uneven, or a JSON file of `lmi-build bounds`."
)
@click.option("--concurrency", type=click.IntRange(min=1), help="Requests at one time.")
@with_common_options
@click.pass_obj
def advise(
    state: State, /, *, recipe: Path | None, model: str | None, **wishes: Any
) -> None:
    """
    Say which serving system to use, with the rule that removed or ranked each.

    Wishes remove systems, goals and traffic rank those that remain. Nothing is
    downloaded but the model's configuration, and that only where it is not here.
    """
    answer = _ask(state, recipe=recipe, model=model, **wishes)
    if state.output == "text":
        click.echo(_text(answer))
    else:
        data(_document(answer))


def _ask(
    state: State, *, recipe: Path | None, model: str | None, **wishes: Any
) -> Answer:
    from lmi_build import advise as library
    from lmi_build import api
    from lmi_build.errors import UsageInvalid

    if (recipe is None) == (model is None):
        raise UsageInvalid(
            "give one of RECIPE and `--model`",
            code="advice.one-model",
            hints=("such as `lmi-build advise --model llama --device gpu`",),
        )
    found = None
    if recipe is not None:
        found = api.load_recipe(recipe, overrides=state.overrides)[0]
    source = found.model.source if found is not None else str(model)
    features = [name.strip() for name in wishes.pop("features").split(",")]
    concurrency = wishes.pop("concurrency") or 0
    words = library.Wishes(
        features=tuple(filter(None, features)), concurrency=concurrency, **wishes
    )
    config = library.model_config(source, state.settings())
    question = library.ask(config, words, recipe=found)
    return library.advise(question)


def _text(answer: Answer) -> str:
    kept = [
        [
            str(each.score),
            each.option.system.title,
            each.option.port.device,
            each.option.system.life.status,
            each.option.port.backend or "-",
        ]
        for each in answer.candidates
    ]
    gone = [
        [each.option.system.title, each.option.port.device, name, finding.reason]
        for each in answer.verdicts
        for name, finding in each.removed
    ]
    parts = []
    if kept:
        parts.append(table(["score", "system", "on", "life", "lmi-build"], kept))
        parts.append("\n".join(_why(each) for each in answer.candidates))
    if gone:
        parts.append(table(["removed", "on", "rule", "why"], gone))
    if answer.relaxations:
        lines = ["no system grants every wish; the fewest to drop:"]
        for each in answer.relaxations:
            words = " and ".join(answer.question.said(wish) for wish in each.wishes)
            lines.append(f"  {words}: then {each.winner}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _why(verdict: Verdict) -> str:
    lines = [f"{verdict.option.system.title} on {verdict.option.port.device}"]
    lines += [
        f"  {finding.points:+d} {name}: {finding.reason}"
        f" [{finding.source.text}, {finding.source.date}]"
        for name, finding in verdict.points
    ]
    return "\n".join(lines)


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
                "backend": each.option.port.backend,
                "container": each.option.port.container,
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

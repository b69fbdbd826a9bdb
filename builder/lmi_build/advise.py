"""The library's advisor: a model and wishes in, an explained answer out."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.advice.advisor import advise
from lmi_build.advice.question import EVENNESS, GOALS, Question
from lmi_build.advice.traffic import Traffic, parse_traffic
from lmi_build.catalog.instances import instances
from lmi_build.catalog.systems import (
    DEVICES,
    FEATURES,
    LIVES,
    TECHNIQUES,
    load_systems,
)
from lmi_build.errors import UsageInvalid
from lmi_build.text import did_you_mean, join_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lmi_build.catalog.instances import Instance
    from lmi_build.catalog.market import Market
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.settings import Settings

__all__ = ["Wishes", "advise", "ask", "family_of", "model_config", "read_traffic"]

ANY = "any"
# What `quantization_config` of a model calls the techniques that it may have.
_METHODS = ("gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """
    What is wished, in the words of the command line; an empty word wishes nothing.

    Args:
        device: Of `DEVICES`, or `any`.
        instance: Such as `ml.g5.2xlarge`.
        technique: Of `TECHNIQUES`; empty takes the model's own.
        features: Of `FEATURES`.
        life: Of `LIVES`.
        built: Only what lmi-build builds for.
        goal: Of `GOALS`.
        traffic: Of `EVENNESS`, or a file: a log, or what `lmi-build bounds` printed
            of one as JSON.
        concurrency: Requests at one time; 0 is unknown.
    """

    device: str = ""
    instance: str = ""
    technique: str = ""
    features: tuple[str, ...] = ()
    life: str = ""
    built: bool = False
    goal: str = ""
    traffic: str = ""
    concurrency: int = 0

    def check(self) -> None:
        """
        Refuse words that nobody knows.

        Raises:
            UsageInvalid: `advice.unknown-word`, with the nearest that is known.
        """
        for option, word, known in (
            ("--device", self.device, (*DEVICES, ANY)),
            ("--technique", self.technique, TECHNIQUES),
            ("--life", self.life, LIVES),
            ("--goal", self.goal, GOALS),
            *(("--features", name, tuple(FEATURES)) for name in self.features),
        ):
            if word:
                _known(option, word, known)


def ask(
    config: Mapping[str, Any],
    wishes: Wishes,
    *,
    recipe: Recipe | None = None,
    market: Market | None = None,
    log: Traffic | None = None,
) -> Question:
    """
    A question from words.

    Args:
        config: Of the model: `model_type`, `architectures`, `quantization_config`.
        wishes: What is wished.
        recipe: What it says is wished where `wishes` says nothing.
        market: Instances of the user's own beside those shipped.
        log: What `wishes.traffic` names, where it was read before.

    Raises:
        UsageInvalid: `advice.unknown-word`, `advice.unknown-model` or
            `advice.two-devices`.
        SourceInvalid: As `read_traffic`.
    """
    wishes.check()
    if log is None:
        log = read_traffic(wishes.traffic)
    if log.max_batch_size and not wishes.concurrency:
        wishes = replace(wishes, concurrency=log.max_batch_size)
    if recipe is not None:
        wishes = _with_recipe(wishes, recipe)
    question = Question(
        family=family_of(config),
        device="" if wishes.device == ANY else wishes.device,
        technique=wishes.technique or _own_technique(config),
        features=tuple(sorted(set(wishes.features))),
        life=wishes.life,
        built=wishes.built,
        goal=wishes.goal,
        traffic=log.evenness,
        spread=log.spread,
        concurrency=wishes.concurrency,
    )
    if not wishes.instance:
        return question
    known = instances() if market is None else market.instances
    return _on_instance(question, wishes.instance, known)


def read_traffic(word: str, settings: Settings | None = None) -> Traffic:
    """
    What `--traffic` says.

    Args:
        word: Of `EVENNESS`, empty, a log, or what `lmi-build bounds --output json`
            printed of one.
        settings: Credentials and endpoint of S3; None for a log that lies here.

    Raises:
        UsageInvalid: `advice.unknown-word`, or `advice.unreadable`.
        SourceInvalid: The log cannot be read or says too little.
    """
    if not word or word in EVENNESS:
        return Traffic(evenness=word or "unknown")
    if "/" not in word and "." not in word and word != "-":
        _known("--traffic", word, (*EVENNESS, "FILE"))
    from lmi_build.traffic.said import traffic_document
    from lmi_build.values.settings import Settings

    known = settings or Settings(cache_dir=Path())
    return parse_traffic(traffic_document(word, known), word)


def _with_recipe(wishes: Wishes, recipe: Recipe) -> Wishes:
    """Target, method and batch of a recipe, where nothing else is wished."""
    device, place = wishes.device, wishes.instance
    if not device and not place:
        target = recipe.compile.target
        device, place = ("", target) if target.startswith("ml.") else (target, "")
    method = "" if recipe.quantize.method == "none" else recipe.quantize.method
    return replace(
        wishes,
        device=device,
        instance=place,
        technique=wishes.technique or method,
        concurrency=wishes.concurrency or recipe.bounds.max_batch_size,
    )


def _on_instance(
    question: Question, name: str, known: Mapping[str, Instance]
) -> Question:
    full = name if name.startswith("ml.") else f"ml.{name}"
    if full not in known:
        near = did_you_mean(full, known)
        raise UsageInvalid(
            f"no instance `{name}` in the catalogue",
            code="advice.unknown-word",
            hints=(f"did you mean `{near}`?",) if near else (),
        )
    row = known[full]
    device = "cpu" if row.accelerator == "none" else row.accelerator
    if question.device and question.device != device:
        raise UsageInvalid(
            f"`{full}` has {device}, and the device asked for is {question.device}",
            code="advice.two-devices",
            hints=(f"leave out `--device {question.device}`, or the instance",),
        )
    return replace(
        question,
        instance=full,
        instance_device=device,
        compute_capability=row.compute_capability,
    )


def _known(option: str, word: str, known: Iterable[str]) -> None:
    names = tuple(known)
    if word in names:
        return
    near = did_you_mean(word, names)
    hint = f"did you mean `{near}`?" if near else f"it takes {join_words(names)}"
    raise UsageInvalid(
        f"`{option}` does not take `{word}`", code="advice.unknown-word", hints=(hint,)
    )


def family_of(config: Mapping[str, Any]) -> str:
    """
    The family of a model by what its `config.json` says.

    Args:
        config: With `model_type`, `architectures` or both.

    Raises:
        UsageInvalid: `advice.unknown-model`: the catalogue has no such family.
    """
    families = load_systems().families
    model_type = str(config.get("model_type", ""))
    if model_type in families:
        return model_type
    listed = config.get("architectures")
    classes = [str(name) for name in listed] if isinstance(listed, list) else []
    for family, names in families.items():
        if set(names) & set(classes):
            return family
    said = model_type or ", ".join(classes) or "nothing"
    near = did_you_mean(said, family_words())
    known = join_words(sorted(families), last="and")
    raise UsageInvalid(
        f"no family `{said}` in the catalogue, so no system is known to load it",
        code="advice.unknown-model",
        hints=(
            *((f"did you mean `{near}`?",) if near else ()),
            f"see the systems' own lists of models; the catalogue has {known}",
        ),
    )


def family_words() -> dict[str, str]:
    """Every word that names a family, with the family."""
    families = load_systems().families
    found = {name: name for name in families}
    found |= {cls: name for name, classes in families.items() for cls in classes}
    return found


def _own_technique(config: Mapping[str, Any]) -> str:
    """How the model's own weights are quantized, where its config says it plainly."""
    section = config.get("quantization_config")
    if not isinstance(section, dict):
        return ""
    method = str(section.get("quant_method", ""))
    return method if method in _METHODS else ""


def model_config(model: str, settings: Settings) -> Mapping[str, Any]:
    """
    What a model's `config.json` says, without a weight.

    Args:
        model: A family or a class of the catalogue, a `config.json`, a folder that
            has one, or whatever `model.source` of a recipe takes.
        settings: The user's environment.

    Raises:
        UsageInvalid: `advice.unknown-model` or `advice.unreadable`.
        LmiBuildError: As for a recipe's model.
    """
    words = family_words()
    if model in words:
        return {"model_type": words[model]}
    path = Path(model)
    file = path / "config.json" if path.is_dir() else path
    if file.suffix == ".json" and file.is_file():
        return read_json(file)
    if "/" not in model and not model.lower().endswith(".gguf"):
        return {"model_type": model}
    from lmi_build.sources.resolve import resolve_model
    from lmi_build.values.recipe import ModelSpec

    facts = resolve_model(
        ModelSpec(source=model),
        settings=settings,
        base=Path.cwd(),
        hashed=False,
        served=False,
    )
    return facts.config


def read_json(file: Path) -> Mapping[str, Any]:
    """
    A JSON object from a file.

    Args:
        file: Where it lies.

    Raises:
        UsageInvalid: `advice.unreadable`: no such file, or no JSON object in it.
    """
    try:
        document = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else f"no JSON: {error}"
        raise UsageInvalid(
            f"{file} cannot be read: {said}", code="advice.unreadable"
        ) from error
    if not isinstance(document, dict):
        raise UsageInvalid(
            f"{file} holds a {type(document).__name__}, not an object",
            code="advice.unreadable",
        )
    return document

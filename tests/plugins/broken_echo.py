"""Variants of the plugin `echo`, each with one fault; by the law that it breaks."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmi_build_echo.backend import EchoBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lmi_build.errors import Problem
    from lmi_build.spi import BackendStage, Finding, Host, Serving

_MANY = 4


def _checking(change: Callable[[Problem], Problem | None]) -> EchoBackend:
    """Its problems are changed, or left out."""

    class Variant(EchoBackend):
        def check(self, *arguments: Any) -> Iterator[Problem]:
            for problem in super().check(*arguments):
                changed = change(problem)
                if changed is not None:
                    yield changed

    return Variant()


def _staging(change: Callable[[BackendStage, Any, Any], BackendStage]) -> EchoBackend:
    """Its stage is changed, by recipe and model."""

    class Variant(EchoBackend):
        def stages(self, *arguments: Any) -> tuple[BackendStage, ...]:
            (stage,) = super().stages(*arguments)
            return (change(stage, arguments[0], arguments[1]),)

    return Variant()


def _serving(change: Callable[[Serving, Any], Serving]) -> EchoBackend:
    """What it serves is changed, by recipe."""

    class Variant(EchoBackend):
        def serving(self, *arguments: Any) -> Serving:
            return change(super().serving(*arguments), arguments[0])

    return Variant()


class _Saltless(EchoBackend):
    info = replace(EchoBackend.info, salt=0)


class _Helpless(EchoBackend):
    def diagnose(self, host: Host) -> Iterator[Finding]:
        for row in super().diagnose(host):
            yield replace(row, fix="")


def _with(stage: BackendStage, **params: Any) -> BackendStage:
    return replace(stage, params={**stage.params, **params})


def _unbatched(serving: Serving, _recipe: Any) -> Serving:
    bounds: Any = serving.settings["bounds"]
    kept = {name: value for name, value in bounds.items() if name != "max_batch_size"}
    return replace(serving, settings={"bounds": kept})


def _two_lines(serving: Serving, recipe: Any) -> Serving:
    if recipe.bounds.max_batch_size <= _MANY:
        return serving
    return replace(serving, properties={**serving.properties, "option.x": "a\nb"})


BACKENDS: Mapping[str, EchoBackend] = {
    "provider-is-whole": _Saltless(),
    "diagnose-finds": _Helpless(),
    "problems-are-located": _checking(
        lambda p: replace(p, path="") if p.path == "bounds.max_beam_width" else p
    ),
    "accepted-lowers": _serving(_two_lines),
    "lowering-is-pure": _staging(
        lambda stage, _recipe, _model: _with(stage, home=os.environ.get("HOME", ""))
    ),
    "order-means-nothing": _staging(
        lambda stage, _recipe, model: _with(stage, names=list(model.config))
    ),
    "bounds-are-served": _serving(_unbatched),
    "bounds-move-their-keys": _staging(
        lambda stage, recipe, _model: replace(
            _with(stage, longest=recipe.bounds.max_input_len), kind="quantize"
        )
    ),
    "options-are-known": _checking(
        lambda p: replace(p, hint="remove it") if "did you mean" in p.hint else p
    ),
    "architectures-are-known": _checking(
        lambda p: None if p.path == "model.source" else p
    ),
    "packings-are-known": _checking(
        lambda p: None if p.path == "quantize.method" else p
    ),
}
# What is changed in the handler that an artifact ships: words to other words.
HANDLERS: Mapping[str, tuple[str, str]] = {
    "tokenizer-is-the-models": ("encode(text).ids)", "encode(text).ids)[::-1]"),
    "bounds-are-enforced": (
        "asked > self.bounds[name]",
        "asked > self.bounds[name] + 1",
    ),
    "session-is-the-reference": (
        'config["rms_norm_eps"]',
        'config["rms_norm_eps"] * 99',
    ),
    "generation-is-the-session": ("row.argmax()", "row.argmin()"),
    "cut-engines-are-refused": (
        'raise EngineBroken(f"the engine cannot be read: {error}") from error',
        'self._config, stored = {"eos_token_id": 2}, {}',
    ),
}
# What is changed in the manifest of an artifact.
MANIFESTS: Mapping[str, tuple[str, str, Any]] = {
    "tokenizer-is-there": ("serving", "tokenizer_dir", "elsewhere"),
    "manifest-keeps-bounds": ("bounds", "max_batch_size", 99),
    "compatibility-is-complete": ("compatibility", "device", ""),
}

"""Measurements of others, and the models they were made of, from shapes alone."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build import registry
from lmi_build.catalog.runtimes import Interval, runtimes
from lmi_build.plan.sizes import subject_of
from lmi_build.sizing.cache import cache_bytes
from lmi_build.sizing.memory import held_lines, memory_lines, rotary_line, total
from lmi_build.values.bounds import Bounds
from lmi_build.values.model import ModelFacts, TensorFact, geometry_from_config
from lmi_build.values.recipe import QuantSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lmi_build.catalog.runtimes import Runtime
    from lmi_build.sizing.memory import MemoryLine, Subject

FILE = Path(__file__).parent / "fixtures" / "sizes" / "published.toml"
GIB = 1 << 30
WHAT = ("weights", "cache", "work", "total")
_GATED = ("gate_proj", "up_proj", "down_proj")
# What is no weight, cache or room left free.
_WORK = ("activations", "logits and sampling", "context and libraries", "communication")


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """
    One number that was printed, beside what is predicted, in bytes.

    Args:
        run: Of which run.
        what: `weights`, `cache`, `work` or `total`.
        measured: What was printed.
        slack: Half of the last digit that was printed.
        predicted: From and to.
        miss: Why it lies outside, where it is known to.
    """

    run: str
    what: str
    measured: float
    slack: float
    predicted: Interval
    miss: str

    @property
    def holds(self) -> bool:
        """Whether the measurement lies in the interval."""
        low, high = self.predicted.low, self.predicted.high
        return low - self.slack <= self.measured <= high + self.slack

    @property
    def error(self) -> float:
        """How far the nearer end lies from it, as a share; 0 inside."""
        if self.holds:
            return 0.0
        ends = (self.predicted.low, self.predicted.high)
        return min(((end - self.measured) / self.measured for end in ends), key=abs)


@cache
def document() -> dict[str, Any]:
    """The data file."""
    found: dict[str, Any] = tomllib.loads(FILE.read_text("utf-8"))
    return found


@cache
def model_facts(key: str) -> ModelFacts:
    """A model's tensors, made without memory for them."""
    import torch
    import transformers

    row = document()["models"][key]
    settings = dict(row["config"])
    if settings.get("q_lora_rank") == 0:
        settings["q_lora_rank"] = None
    config = getattr(transformers, f"{row['class']}Config")(**settings)
    name = f"{row['class']}{row.get('head', 'ForCausalLM')}"
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    tensors = [
        fact
        for tensor, value in model.state_dict().items()
        for fact in _stored(tensor, tuple(value.shape), row["config"])
        if not (tensor == "lm_head.weight" and config.tie_word_embeddings)
    ]
    raw = {**settings, "architectures": [name]}
    raw["model_type"] = config.model_type
    return ModelFacts(
        kind="folder",
        source=key,
        location=key,
        revision="",
        geometry=geometry_from_config(raw),
        config=raw,
        files=(),
        tensors=tuple(tensors),
        dtype="bfloat16",
    )


def _stored(
    key: str, shape: tuple[int, ...], config: dict[str, Any]
) -> list[TensorFact]:
    """Tensors of a file: experts stand there one by one, gates apart from ups."""
    if len(shape) == 3:
        prefix, _, part = key.rpartition(".")
        halves = _GATED[:2] if part == "gate_up_proj" else _GATED[2:]
        size = (shape[1] // len(halves), shape[2])
        names = {half: half for half in halves}
        if "num_local_experts" in config:
            prefix = prefix.replace("mlp", "block_sparse_moe")
            names = dict(zip(_GATED, ("w1", "w3", "w2"), strict=True))
        return [
            _fact(f"{prefix}.{index}.{names[half]}.weight", size)
            for index in range(shape[0])
            for half in halves
        ]
    if "num_local_experts" in config:
        key = key.replace("mlp.gate", "block_sparse_moe.gate")
    return [_fact(key, shape)]


def _fact(name: str, shape: tuple[int, ...]) -> TensorFact:
    return TensorFact(name=name, dtype="bfloat16", shape=shape, file="m.safetensors")


def subject(run: dict[str, Any]) -> Subject:
    """The model of a run, quantized as it was."""
    quantize = run.get("quantize")
    spec = QuantSpec(**quantize) if quantize else QuantSpec()
    found = subject_of(model_facts(run["model"]), spec, registry.quantizer)
    kept = run.get("kv_cache_dtype", found.scheme.kv_cache_dtype)
    return replace(found, scheme=replace(found.scheme, kv_cache_dtype=kept))


def comparisons() -> list[Comparison]:
    """Every printed number with its prediction."""
    return [item for run in document()["runs"] for item in _compare(run)]


def _compare(run: dict[str, Any]) -> list[Comparison]:
    found, tp = subject(run), run.get("tp", 1)
    runtime = runtimes()[run.get("runtime", "vllm")]
    if run.get("switched"):
        runtime = replace(runtime, communication=runtime.switched_communication)
    rows: dict[str, Interval] = {}
    if "weights_gib" in run:
        lines = held_lines(found, runtime, tp=tp, pp=run.get("pp", 1))
        rows["weights"] = total((*lines, rotary_line(found, runtime)))
    if "cache_gib" in run:
        rows["cache"] = _cache(found, run, runtime, tp)
    if "work_gib" in run:
        need = total(_lines(found, run, runtime, tp, _WORK))
        # What the driver takes before the first measurement is in no log.
        low = max(0, need.low - runtime.context.low)
        rows["work"] = Interval(low=low, high=need.high)
    if "total_gib" in run:
        names = (*_WORK, "captured graphs", "fragmentation")
        lines = (
            *held_lines(found, runtime, tp=tp),
            rotary_line(found, runtime),
            *_lines(found, run, runtime, tp, names),
        )
        rows["total"] = total(lines) + _cache(found, run, runtime, tp)
    return [
        Comparison(
            run=run["name"],
            what=what,
            measured=run[f"{what}_gib"] * GIB,
            slack=_slack(run[f"{what}_gib"]),
            predicted=predicted,
            miss=run.get("miss", {}).get(what, ""),
        )
        for what, predicted in rows.items()
    ]


def _cache(found: Subject, run: dict[str, Any], runtime: Runtime, tp: int) -> Interval:
    """What so many tokens take, to one block more, which no longer was a whole one."""

    def at(tokens: int) -> Interval:
        bounds = Bounds(max_input_len=tokens, max_output_len=0)
        bits = found.cache_bits_in(runtime)
        return cache_bytes(found.cache, bounds, runtime, dtype_bits=bits, tp=tp)

    tokens = run["cache_tokens"]
    more = at(tokens + runtime.block_tokens)
    return Interval(low=at(tokens).low, high=more.high)


def _lines(
    found: Subject, run: dict[str, Any], runtime: Runtime, tp: int, names: Iterable[str]
) -> tuple[MemoryLine, ...]:
    """Lines of a forward of so many tokens and requests, and of a cache so large."""
    one = Bounds(
        max_input_len=run.get("cache_tokens", run["num_tokens"]),
        max_output_len=1,
        max_num_tokens=run["num_tokens"],
    )
    all_of_them = replace(one, max_input_len=1, max_batch_size=run["num_requests"])
    lines = memory_lines(found, one, runtime, tp=tp)
    sampled = memory_lines(found, all_of_them, runtime, tp=tp)
    by_name = {line.name: line for line in lines}
    by_name |= {line.name: line for line in sampled if line.name.startswith("logits")}
    return tuple(line for name, line in by_name.items() if name in names)


def _slack(value: float) -> float:
    """Half of the last digit."""
    digits = len(repr(value).partition(".")[2])
    return 0.5 * 10.0 ** -max(digits, 2) * GIB


def markdown() -> str:
    """The table of docs/concepts/sizing.md."""
    runs, found = document()["runs"], comparisons()
    numbers: dict[str, int] = {}
    for run in runs:
        numbers.setdefault(run["source"], len(numbers) + 1)
    inside = sum(item.holds for item in found)
    outside = len(found) - inside
    rows = []
    for run in runs:
        cells = {item.what: _cell(item) for item in found if item.run == run["name"]}
        told = " | ".join(cells.get(what, "") for what in WHAT)
        rows.append(f"| {run['name']} [{numbers[run['source']]}] | {told} |")
    misses = [f"- {item.run}, {item.what}: {item.miss}." for item in found if item.miss]
    notes = [f"{number}. {source}" for source, number in numbers.items()]
    return "\n".join(
        [
            f"{len(runs)} starts, {len(found)} numbers: {inside} in, {outside} out.",
            "",
            f"| run | {' | '.join(WHAT)} |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            "Misses:",
            "",
            *misses,
            "",
            "Sources:",
            "",
            *notes,
        ]
    )


def _cell(item: Comparison) -> str:
    printed, predicted = f"{item.measured / GIB:.4g}", _range(item.predicted)
    if item.holds:
        return f"{printed} in {predicted}"
    return f"**{printed}**, not {predicted}: {item.error:+.1%}"


def _range(size: Interval) -> str:
    low, high = f"{size.low / GIB:.4g}", f"{size.high / GIB:.4g}"
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    print(markdown())  # noqa: T201 - what stands in the documentation

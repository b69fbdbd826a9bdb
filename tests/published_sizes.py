"""Measurements of others, and the models they were made of, from shapes alone."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build import registry
from lmi_build.catalog.runtimes import Interval, runtimes
from lmi_build.plan.sizes import subject_of
from lmi_build.sizing.cache import cache_bytes
from lmi_build.sizing.memory import memory_lines, rotary_line, total, weight_lines
from lmi_build.values.bounds import Bounds
from lmi_build.values.model import ModelFacts, TensorFact, geometry_from_config
from lmi_build.values.recipe import QuantSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from lmi_build.sizing.memory import Subject

FILE = Path(__file__).parent / "fixtures" / "sizes" / "published.toml"
GIB = 1 << 30
_GATED = ("gate_proj", "up_proj", "down_proj")
# What PyTorch rounds every allocation up to.
_ALLOCATION = 512
# What is no weight, cache or room left free.
_WORK = ("activations", "logits and sampling", "context and libraries", "communication")


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """
    One number that was printed, beside what is predicted, in bytes.

    Args:
        run: Of which run.
        what: `weights`, `cache` or `work`.
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
        return min((end - self.measured) / self.measured for end in ends)


@cache
def document() -> dict[str, Any]:
    """The data file."""
    found: dict[str, Any] = tomllib.loads(FILE.read_text("utf-8"))
    return found


@cache
def model_facts(name: str) -> ModelFacts:
    """A model's tensors, made without memory for them."""
    import torch
    import transformers

    row = document()["models"][name]
    settings = dict(row["config"])
    if settings.get("q_lora_rank") == 0:
        settings["q_lora_rank"] = None
    config = getattr(transformers, f"{row['class']}Config")(**settings)
    with torch.device("meta"):
        model = getattr(transformers, f"{row['class']}ForCausalLM")(config)
    tensors = [
        fact
        for key, value in model.state_dict().items()
        for fact in _stored(key, tuple(value.shape), row["config"])
        if not (key == "lm_head.weight" and config.tie_word_embeddings)
    ]
    raw = {**settings, "architectures": [f"{row['class']}ForCausalLM"]}
    raw["model_type"] = config.model_type
    return ModelFacts(
        kind="folder",
        source=name,
        location=name,
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
    return subject_of(model_facts(run["model"]), spec, registry.quantizer)


def comparisons() -> list[Comparison]:
    """Every printed number with its prediction."""
    return [item for run in document()["runs"] for item in _compare(run)]


def _compare(run: dict[str, Any]) -> list[Comparison]:
    found, tp = subject(run), run.get("tp", 1)
    runtime = runtimes()[run.get("runtime", "vllm")]
    rows: dict[str, Interval] = {}
    if "weights_gib" in run:
        lines = (*weight_lines(found, runtime, tp=tp), rotary_line(found, runtime))
        rounding = sum(item.count for item in found.table.classes) * _ALLOCATION
        rows["weights"] = total(lines) + Interval(low=0, high=rounding)
    if "cache_gib" in run:
        bounds = Bounds(max_input_len=run["cache_tokens"], max_output_len=0)
        rows["cache"] = cache_bytes(
            found.cache, bounds, runtime, dtype_bits=found.cache_bits_in(runtime), tp=tp
        )
    if "work_gib" in run:
        bounds = Bounds(
            max_input_len=run["num_tokens"],
            max_output_len=1,
            max_batch_size=run["num_requests"],
            max_num_tokens=run["num_tokens"],
        )
        lines = memory_lines(found, bounds, runtime, tp=tp)
        need = total(tuple(line for line in lines if line.name in _WORK))
        # What the driver takes before the first measurement is in no log.
        low = max(0, need.low - runtime.context.low)
        rows["work"] = Interval(low=low, high=need.high)
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


def _slack(value: float) -> float:
    """Half of the last digit, and of one block of the cache."""
    digits = len(repr(value).partition(".")[2])
    return 0.5 * 10.0 ** -max(digits, 2) * GIB


def markdown() -> str:
    """The table of docs/concepts/sizing.md."""
    sources = {run["name"]: run["source"] for run in document()["runs"]}
    numbers = {name: index for index, name in enumerate(sources, 1)}
    head = "| run | what | printed | predicted | error |"
    rule = "| --- | --- | ---: | ---: | ---: |"
    rows = [
        f"| {item.run} [{numbers[item.run]}] | {item.what} |"
        f" {item.measured / GIB:.4g} | {_range(item.predicted)} |"
        f" {'inside' if item.holds else f'{item.error:+.1%}'} |"
        for item in comparisons()
    ]
    misses = [
        f"- {item.run}, {item.what}: {item.miss}."
        for item in comparisons()
        if item.miss
    ]
    notes = [f"{number}. {sources[name]}" for name, number in numbers.items()]
    return "\n".join(
        [head, rule, *rows, "", "Misses:", "", *misses, "", "Sources:", "", *notes]
    )


def _range(size: Interval) -> str:
    low, high = f"{size.low / GIB:.4g}", f"{size.high / GIB:.4g}"
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    print(markdown())  # noqa: T201 - what stands in the documentation

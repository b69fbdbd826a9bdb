"""
Whether the linears that become codes have a place in a checkpoint, on every rank.

One set of rules for the plan, which has sizes and names alone, and for the worker,
which has the quantized checkpoint: what the worker would refuse for sizes or for what
stayed in float, the plan has refused before anything was quantized.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.block_linears import expert_linears, layer_linears
from lmi_build.backends.trtllm.checkpoint_shards import Mapping2D
from lmi_build.backends.trtllm.linear_checks import GROUP_SIZES, linear_problem
from lmi_build.backends.trtllm.quant_config import AWQ, exclusion_problem
from lmi_build.backends.trtllm.split_checks import (
    PIPELINE_PATH,
    TENSOR_PATH,
    split_problems,
)
from lmi_build.errors import Problem
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.backends.trtllm.checkpoint_shards import RankLinear
    from lmi_build.backends.trtllm.source_model import SourceModel

IGNORE_PATH = "quantize.ignore"
# What a mixture's experts may be quantized to.
EXPERT_ALGORITHMS = ("W8A16",)
# Methods by what they become; those that widths alone may rule out.
_METHODS = {"int8": "W8A16", "smoothquant": "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Coding:
    """
    What linears become, and which.

    Args:
        algorithm: `quant_algo`.
        group_size: Inputs per scale; 0 where there are no groups.
        version: Of TensorRT-LLM.
        modules: Linears of the source that become codes; None for all of every block.
        settled: The source came quantized, so that only its split can be chosen.
    """

    algorithm: str
    group_size: int
    version: str
    modules: frozenset[str] | None = None
    settled: bool = False

    def takes(self, module: str) -> bool:
        """Whether a linear of the source becomes codes."""
        return self.modules is None or module in self.modules


def coding_problems(
    model: SourceModel, mapping: Mapping2D, coding: Coding
) -> Iterator[Problem]:
    """
    Every reason why these codes have no place in the checkpoint.

    Args:
        model: What is converted; its tensors need not be known.
        mapping: How it is split; `split_problems` found nothing wrong with it.
        coding: What its linears become.
    """
    if model.num_experts and coding.algorithm not in EXPERT_ALGORITHMS:
        yield Problem(
            code="trtllm.coded-experts",
            message=f"experts of `{model.row.name}` cannot be {coding.algorithm}",
            path="model.source" if coding.settled else "quantize.method",
            hint="set `method: int8` or `method: none`",
            unsupported=True,
        )
        return
    found = [*_mixed_problems(model, coding), *_expert_problems(model, coding)]
    if not found:
        found = [*_float_problems(model, mapping, coding)]
    yield from found
    yield from _width_problems(model, mapping, coding)


def _fused(
    model: SourceModel, layer: int, tp: int = 1, *, prefix: str = ""
) -> tuple[RankLinear, ...]:
    """The linears of one block, as the first rank has them."""
    return (
        *layer_linears(model, prefix, layer, tp, 0),
        *expert_linears(model, prefix, layer, tp, 0),
    )


def _mixed_problems(model: SourceModel, coding: Coding) -> Iterator[Problem]:
    """Parts of one fused linear of which some are codes and some are not."""
    found: dict[str, list[tuple[str, ...]]] = {}
    layers = model.geometry.num_layers
    for layer in range(layers):
        for linear in layer_linears(model, "", layer, 1, 0):
            modules = tuple(dict.fromkeys(cut.module for cut in linear.cuts))
            if 0 < sum(map(coding.takes, modules)) < len(modules):
                found.setdefault(linear.name, []).append(modules)
    for name, blocks in found.items():
        modules = blocks[0]
        floats = [module for module in modules if not coding.takes(module)]
        others = [module for module in modules if coding.takes(module)]
        block = f"{model.architecture.block(0)}."
        everywhere = len(blocks) == layers > 1
        yield _float_problem(
            coding,
            f"float {join_words(floats, last='and')} and quantized"
            f" {join_words(others, last='and')} cannot be one linear, which they are"
            f" in TensorRT-LLM: `{name.removeprefix('.')}`"
            + (f" (so in {len(blocks)} of {layers} blocks)" if layers > 1 else ""),
            tuple(f"*.{module.removeprefix(block)}" for module in modules)
            if everywhere
            else modules,
        )


def _expert_problems(model: SourceModel, coding: Coding) -> Iterator[Problem]:
    """All experts of a mixture are one tensor, and no name excludes them."""
    floats = [
        cut.module
        for layer in range(model.geometry.num_layers)
        for linear in expert_linears(model, "", layer, 1, 0)
        for cut in linear.cuts
        if not coding.takes(cut.module)
    ]
    if floats:
        yield _float_problem(
            coding,
            f"{len(floats)} linears of experts are left in float, such as"
            f" `{floats[0]}`; with {coding.algorithm} all experts of a mixture are"
            " codes",
            (),
        )


def _float_problems(
    model: SourceModel, mapping: Mapping2D, coding: Coding
) -> Iterator[Problem]:
    """Whole linears that stay in float, which a release may not be able to say."""
    floats: dict[str, str] = {}
    codes: dict[str, str] = {}
    for stage in range(mapping.pp):
        for local, layer in enumerate(mapping.layers(stage, model.geometry.num_layers)):
            for linear in layer_linears(model, str(local), layer, 1, 0):
                module = linear.cuts[0].module
                (codes if coding.takes(module) else floats)[linear.name] = module
    fault = exclusion_problem(
        coding.algorithm,
        trtllm=coding.version,
        float_modules=sorted(floats.values()),
    )
    both = sorted(set(floats) & set(codes))
    if fault:
        yield _float_problem(coding, fault, ())
    elif both:
        one = both[0]
        yield Problem(
            code="trtllm.float-linears",
            message=f"`{floats[one]}` is left in float and `{codes[one]}` not; in"
            f" their pipeline stages both have the same name, and a checkpoint of"
            f" {mapping.pp} stages has one list of what stays in float",
            path=PIPELINE_PATH,
            hint="set it to 1, or leave the same linears of each stage in float",
            unsupported=True,
        )


def _float_problem(coding: Coding, message: str, together: tuple[str, ...]) -> Problem:
    """One about what stays in float; `together` could stay so as a whole."""
    whole = exclusion_problem(
        coding.algorithm, trtllm=coding.version, float_modules=together
    )
    if coding.settled:
        hint = "use a model whose linears are quantized alike, or its float original"
    elif together and not whole:
        hint = f"ignore {join_words(together, last='and')}, or none of them"
    else:
        hint = "write `ignore: [lm_head]`: quantize every linear of the blocks"
    return Problem(
        code="trtllm.float-linears",
        message=message,
        path="model.source" if coding.settled else IGNORE_PATH,
        hint=hint,
        unsupported=True,
    )


def _width_problems(
    model: SourceModel, mapping: Mapping2D, coding: Coding
) -> Iterator[Problem]:
    """Linears whose sizes on a rank no kernel takes: the first of each kind."""
    faults = _width_faults(model, mapping.tp, coding)
    if not faults:
        return
    path, hint = _way_out(model, mapping, coding)
    for module, fault in faults.items():
        yield Problem(
            code="trtllm.layout",
            message=f"`{module}` cannot be {coding.algorithm} with"
            f" `tensor_parallel_size: {mapping.tp}`: {fault}",
            path=path,
            hint=hint,
            unsupported=True,
        )


def _width_faults(model: SourceModel, tp: int, coding: Coding) -> dict[str, str]:
    """Why a linear has no place, by the first module of each kind of it."""
    seen: set[tuple[str, bool]] = set()
    faults: dict[str, str] = {}
    for layer in range(model.geometry.num_layers):
        for linear in _fused(model, layer, tp):
            module = linear.cuts[0].module
            kind = (linear.name, linear.expert is None)
            if kind in seen or not coding.takes(module):
                continue
            seen.add(kind)
            row = linear.role == "row"
            fault = linear_problem(
                linear.num_inputs * (tp if row else 1),
                linear.num_outputs * (1 if row else tp),
                coding.algorithm,
                role=linear.role,
                group_size=coding.group_size or -1,
                tensor_parallel_size=tp,
                trtllm=coding.version,
            )
            if fault:
                faults[module] = fault
    return faults


def _way_out(model: SourceModel, mapping: Mapping2D, coding: Coding) -> tuple[str, str]:
    """What of a recipe to change, with values that fit: its path and a sentence."""
    ranks = [n for n in range(mapping.tp - 1, 0, -1) if _fits(model, n, coding)][:1]
    found = [(TENSOR_PATH, f"tensor_parallel_size: {n}") for n in ranks]
    if not coding.settled:
        if coding.algorithm == AWQ:
            found += [
                ("quantize.group_size", f"group_size: {size}")
                for size in GROUP_SIZES
                if _fits(model, mapping.tp, replace(coding, group_size=size))
            ]
        found += [
            ("quantize.method", f"method: {name}")
            for name, algorithm in _METHODS.items()
            if name in model.row.quantization
            and algorithm != coding.algorithm
            and _fits(
                model,
                mapping.tp,
                replace(coding, algorithm=algorithm, group_size=0, modules=None),
            )
        ]
    if found:
        return found[0][0], f"set {join_words([text for _, text in found])}"
    if coding.settled:
        return "model.source", "start from the float model, with `method: none`"
    return "quantize.method", "set `method: none`"


def _fits(model: SourceModel, tp: int, coding: Coding) -> bool:
    """Whether every linear that becomes codes has a place on so many ranks."""
    problems = split_problems(
        model.row,
        model.geometry,
        Mapping2D(tp=tp),
        coding.version,
        parallel_embedding=model.parallel_embedding,
    )
    if any(True for _ in problems):
        return False
    if model.num_experts and coding.algorithm not in EXPERT_ALGORITHMS:
        return False
    return not _width_faults(model, tp, coding)

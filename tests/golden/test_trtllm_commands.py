"""The commands of every release, method and split: they change only on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lmi_build.backends.trtllm.algorithms import algorithm_problems
from lmi_build.backends.trtllm.models import trtllm_models
from lmi_build.backends.trtllm.rehearsal import rehearse
from lmi_build.catalog.instances import instance
from lmi_build.values.recipe import CompileSpec
from trtllm_recipes import SCHEMES, engine_releases, lowered

if TYPE_CHECKING:
    from lmi_build.catalog.releases import Release

GOLDEN = Path(__file__).parent / "trtllm"
SPLITS = ((1, 1, "ml.g5.2xlarge"), (4, 1, "ml.g5.12xlarge"), (4, 2, "ml.p4d.24xlarge"))
# One architecture that lmi-build writes itself, and each way of NVIDIA's converter.
OTHERS = ("BaichuanForCausalLM", "PhiForCausalLM", "T5ForConditionalGeneration")


def lines(release: Release) -> list[str]:
    """Every command of one release, folded to what differs."""
    found = [f"release {release.name}: TensorRT-LLM {release.trtllm}"]
    for method in SCHEMES:
        for tensor, pipeline, target in SPLITS:
            found += command_lines(
                release, "LlamaForCausalLM", method, tensor, pipeline, target
            )
    for name in OTHERS:
        for method in ("none", "int8", "gptq"):
            found += command_lines(release, name, method, 1, 1, "ml.g5.2xlarge")
    return found


def command_lines(
    release: Release,
    architecture: str,
    method: str,
    tensor: int,
    pipeline: int,
    target: str,
) -> list[str]:
    """The commands of one engine, or why there are none."""
    title = f"{architecture} {method} tp{tensor} pp{pipeline} {target}"
    model = trtllm_models()[architecture]
    problems = [
        problem.message
        for problem in algorithm_problems(
            SCHEMES[method], model, release, instance(target), dtype="bfloat16"
        )
    ]
    if problems:
        return [f"{title}: {problems[0]}"]
    spec = CompileSpec(
        backend="tensorrt-llm",
        target=target,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
    )
    plan = lowered(release, method, architecture=architecture, spec=spec, target=target)
    commands = rehearse(plan)["commands"]
    assert isinstance(commands, list)
    texts = [" ".join(map(str, words)) for words in commands]
    kind = plan.quant_algo or "float"
    return [f"{title}: {kind} {plan.kv_cache_quant_algo}".rstrip(), *texts]


@pytest.mark.parametrize("release", engine_releases(), ids=lambda row: row.name)
def test_commands_are_kept(release: Release, *, update_golden: bool) -> None:
    """Each release has one file of its commands; a word that changes is a diff."""
    path = GOLDEN / f"{release.name}.txt"
    text = fold(lines(release))
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")

    assert text == path.read_text("utf-8")


def fold(found: list[str]) -> str:
    """Text in which a command that was said before is a reference to it."""
    seen: dict[str, int] = {}
    out = []
    for line in found:
        if line.startswith(("trtllm-build ", "python3 ")):
            if line in seen:
                out.append(f"  = command {seen[line]}")
                continue
            seen[line] = len(seen) + 1
            out.append(f"  {seen[line]}: {line}")
        else:
            out.append(line)
    return "\n".join(out) + "\n"


def test_no_file_is_left_over() -> None:
    """A release that is gone takes its commands along."""
    names = {f"{release.name}.txt" for release in engine_releases()}

    assert {path.name for path in GOLDEN.iterdir()} == names

"""The folder that the commands of an engine build run in, and how they are started."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.backends.containers import (
    WORK,
    Container,
    Mount,
    docker_run,
    environment,
)
from lmi_build.backends.trtllm.command import CACHE, ENGINE
from lmi_build.backends.trtllm.conversion import (
    CHECKPOINT,
    EXAMPLES,
    QUANTIZED,
    SOURCE,
)
from lmi_build.errors import ToolMissing, Unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmi_build.backends.trtllm.lowering import EnginePlan
    from lmi_build.backends.trtllm.preflight import Gpu
    from lmi_build.spi import Job

RUNNERS = ("local", "container")
_HOME = "home"
_REPOSITORY = "https://github.com/NVIDIA/TensorRT-LLM"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """
    Where the commands of one build run.

    Args:
        work: The folder they run in, on this machine.
        runner: `local` or `container`.
        image: The container's image; empty for `local`.
        mounts: What a container sees.
        variables: Their environment.
        gpus: Indices of the GPUs they use; empty for all.
    """

    work: Path
    runner: str
    image: str
    mounts: tuple[Mount, ...]
    variables: Mapping[str, str]
    gpus: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"the image `{self.image}`" if self.image else "this environment"

    def command(self, words: Sequence[str]) -> list[str]:
        """The words as this machine runs them."""
        if self.runner == "local":
            return list(words)
        return docker_run(self.container, words)

    def on(self, gpus: Sequence[Gpu]) -> Place:
        """
        The same place with these GPUs only.

        Ranks take GPUs in the order they are seen, so the ones with room come first.
        """
        indices = tuple(gpu.index for gpu in gpus)
        chosen = {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, indices)),
        }
        variables = self.variables
        if self.runner == "local":
            variables = {**variables, **chosen}
        return replace(self, gpus=indices, variables=variables)

    @property
    def container(self) -> Container:
        """The container, named so that it can be ended."""
        return Container(
            image=self.image,
            mounts=self.mounts,
            user=f"{os.getuid()}:{os.getgid()}",
            gpus=",".join(map(str, self.gpus)) or "all",
            environment=environment(f"{WORK}/{_HOME}"),
            name=f"lmi-build-{os.getpid()}",
        )


def make_place(job: Job, plan: EnginePlan, work: Path) -> Place:
    """
    The folder of the commands, with everything they read by its fixed name.

    Args:
        job: Its inputs and settings: `runner`, `image`, `examples`.
        plan: The engine.
        work: An empty folder.

    Raises:
        ToolMissing: `trtllm.converter-missing`.
        Unsupported: `trtllm.sharded-gptq`.
    """
    runner = str(job.settings.get("runner", "local"))
    if runner not in RUNNERS:
        raise ValueError(f"`{runner}` is no runner")
    for name in (ENGINE, CACHE, _HOME):
        (work / name).mkdir()
    shown = _shown(job, plan)
    mounts = [Mount(source=str(work), target=WORK, writable=True)]
    for name, folder in shown.items():
        if runner == "local":
            (work / name).symlink_to(folder, target_is_directory=True)
        else:
            (work / name).mkdir()
            mounts.append(Mount(source=str(folder), target=f"{WORK}/{name}"))
    if plan.conversion is not None:
        (work / CHECKPOINT).mkdir()
        _show_source(job.inputs["source"], work / SOURCE, plan, mounts, runner=runner)
    return Place(
        work=work,
        runner=runner,
        image=str(job.settings["image"]) if runner == "container" else "",
        mounts=tuple(mounts),
        variables=_variables(work) if runner == "local" else dict(os.environ),
    )


def _shown(job: Job, plan: EnginePlan) -> dict[str, Path]:
    """Folders that the commands read, by the name they read them under."""
    if plan.conversion is None:
        return {CHECKPOINT: job.inputs["checkpoint"].resolve()}
    examples = str(job.settings.get("examples", ""))
    script = Path(examples) / plan.conversion.script.removeprefix("examples/")
    if not examples or not script.is_file():
        clone = f"git clone --depth 1 --branch v{plan.trtllm} {_REPOSITORY}"
        where = f"`{examples}` has no" if examples else "there is no"
        raise ToolMissing(
            f"{where} `{plan.conversion.script}` of TensorRT-LLM {plan.trtllm}",
            code="trtllm.converter-missing",
            hints=(f"{clone}, then name its `examples`",),
        )
    return {EXAMPLES: Path(examples).resolve()}


def _show_source(
    source: Path, folder: Path, plan: EnginePlan, mounts: list[Mount], *, runner: str
) -> None:
    """
    The model as the converter will take it.

    GPTQ weights go through an option of their own, and the configuration beside them
    must not speak of quantization: newer converters would believe it and take zero
    points for symmetric ones.
    """
    folder.mkdir()
    quantized = plan.conversion is not None and plan.conversion.quantized
    files = sorted(path for path in source.iterdir() if path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors"]
    if quantized and len(weights) != 1:
        raise Unsupported(
            f"the converter reads one file of GPTQ weights, there are {len(weights)}",
            code="trtllm.sharded-gptq",
            hints=("save the checkpoint as one safetensors file",),
        )
    for path in files:
        name = QUANTIZED if quantized and path in weights else path.name
        if name == "config.json" and quantized:
            config = json.loads(path.read_bytes())
            config.pop("quantization_config", None)
            (folder / name).write_text(json.dumps(config), "utf-8")
        elif runner == "local":
            (folder / name).symlink_to(path.resolve())
        else:
            (folder / name).touch()
            target = f"{WORK}/{SOURCE}/{name}"
            mounts.append(Mount(source=str(path.resolve()), target=target))


def _variables(work: Path) -> dict[str, str]:
    """This environment's variables, with the interpreter's own scripts first."""
    scripts = str(Path(sys.executable).parent)
    path = os.pathsep.join(filter(None, [scripts, os.environ.get("PATH")]))
    return {**os.environ, **environment(str(work / _HOME)), "PATH": path}

"""Decoders that the real drivers of optimum-neuron and NxD Inference export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.backends.folder import Folder
from lmi_build.backends.neuronx.compile_plan import compile_plan
from lmi_build.backends.neuronx.drivers.common import MARK
from lmi_build.backends.neuronx.nxd_request import NxdRequest
from lmi_build.backends.neuronx.nxdi import lower_nxdi, nxdi_expected
from lmi_build.backends.neuronx.optimum import lower_optimum, optimum_expected
from lmi_build.backends.neuronx.workplace import ship
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.values.bounds import Bounds

if TYPE_CHECKING:
    from lmi_build.backends.neuronx.calls import NeuronCall

STANDINS = Path(__file__).parent / "neuron_standins"
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
}


def request(release: str, model_type: str = "llama", **parts: Any) -> NxdRequest:
    """What is compiled for a small decoder."""
    bounds = Bounds(max_input_len=1024, max_output_len=512, max_batch_size=4)
    values: dict[str, Any] = {
        "release": neuron_releases()[release],
        "model_type": model_type,
        "num_layers": CONFIG["num_hidden_layers"],
        "bounds": bounds,
        "tensor_parallel_size": 2,
        "family": "inf2",
        "amp": "bf16",
    }
    return NxdRequest(**{**values, **parts})


def folder(files: dict[str, Any]) -> Folder:
    """Files by path; what is no text is written as JSON."""
    data = {
        path: (content if isinstance(content, str) else json.dumps(content)).encode()
        for path, content in files.items()
    }
    sizes = {path: len(content) for path, content in data.items()}
    return Folder(sizes=sizes, read=data.__getitem__, where="test")


def lowered(asked: NxdRequest, loader: str) -> NeuronCall:
    """The call of one of the two loaders."""
    return lower_nxdi(asked) if loader == "nxdi" else lower_optimum(asked)


def write_model(folder: Path, model_type: str = "llama") -> Path:
    """A decoder's folder with a few weights."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    names = {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}
    name = names.get(model_type, f"{model_type.title()}ForCausalLM")
    config = {**CONFIG, "model_type": model_type, "architectures": [name]}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    weights = {
        "model.embed_tokens.weight": torch.randn(32, 16, generator=generator),
        "model.layers.0.mlp.up_proj.weight": torch.randn(8, 16, generator=generator),
        "model.norm.weight": torch.randn(15, generator=generator),
    }
    save_file(weights, folder / "model.safetensors")
    return folder


def run_export(
    call: dict[str, Any], model: Path, work: Path, *, cores: int, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The driver as the compile stage starts it; its result is `work/result`."""
    (work / "result").mkdir(parents=True)
    ship(work / "driver")
    asked = {
        "call": call,
        "model": str(model),
        "device": cores > 0,
        "versions": {},
        "block": None,
        "workdir": "/",
    }
    (work / "call.json").write_text(json.dumps(asked))
    words = [work / "driver", "build", work / "call.json", work / "result"]
    return start(words, work, cores=cores, **variables)


def start(
    words: list[Any], work: Path, *, cores: int, compiler: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Python with the stand-ins and a compiler of some version."""
    compilers = work / "site" / "neuronxcc"
    compilers.mkdir(parents=True, exist_ok=True)
    version = compiler or "2.15.141.0"
    (compilers / "__init__.py").write_text(f"__version__ = {version!r}\n")
    paths = os.pathsep.join([str(work / "site"), str(STANDINS)])
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "STANDIN_NEURON_CORES": str(cores),
        **variables,
    }
    return subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def faults(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What a driver said that the user must hear."""
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    events = [json.loads(line.removeprefix(MARK)) for line in lines]
    return [event for event in events if event["event"] == "fault"]


def plan_of(asked: NxdRequest, call: NeuronCall) -> Any:
    """The compile stage of a call."""
    say = nxdi_expected if call.loader == "nxdi" else optimum_expected
    return compile_plan(
        call,
        asked.release,
        num_cores=asked.tensor_parallel_size,
        device_needed=False,
        expected=say(asked),
    )

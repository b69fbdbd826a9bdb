"""
Programs that stand for a machine with a GPU: real processes, found on PATH.

`trtllm-build` here reads a checkpoint's `config.json` and writes an engine folder as
the real one lays it out, except for one fault that the test names.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from lmi_build.spi import Job

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pytest

    from lmi_build.backends.trtllm.lowering import EnginePlan

# As a g5.2xlarge answers the query of `preflight`.
A10G = "0, NVIDIA A10G, 8.6, 23028, 22515, 550.163.01"
T4 = "0, Tesla T4, 7.5, 15360, 15095, 550.163.01"
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    " Make sure that the latest NVIDIA driver is installed and running."
)

_BUILD = """\
import json, os, sys
from pathlib import Path

words = sys.argv[1:]
given = {}
while words:
    name = words.pop(0)[2:]
    given[name] = words.pop(0) if words and not words[0].startswith("--") else True
fault = os.environ["FAULT"]
print("[TensorRT-LLM] TensorRT-LLM version:", os.environ["VERSION"], flush=True)
if fault == "slow":
    time.sleep(20)
config = json.loads(Path(given["checkpoint_dir"], "config.json").read_text())
out = Path(given["output_dir"])
out.mkdir(parents=True, exist_ok=True)
build = {
    name: int(value) for name, value in given.items()
    if name.startswith(("max_", "opt_"))
}
if fault == "smaller":
    build["max_batch_size"] -= 1
if fault == "larger":
    build["max_num_tokens"] += 8
build["gpus"] = os.environ.get("CUDA_VISIBLE_DEVICES")
build["plugin_config"] = {"dtype": config["dtype"]}
build["input_timing_cache"] = given.get("input_timing_cache")
if fault == "path":
    build["input_timing_cache"] = os.path.abspath(given["input_timing_cache"])
if fault == "algorithm":
    config["quantization"]["quant_algo"] = "W8A16"
ranks = config["mapping"]["tp_size"] * config["mapping"]["pp_size"]
for rank in range(ranks):
    if fault == "fail" and rank == ranks - 1:
        print("[TRT] [E] 1: [virtualMemoryBuffer.cpp] out of memory", file=sys.stderr)
        sys.exit(1)
    if fault == "killed" and rank == ranks - 1:
        os.kill(os.getpid(), 9)
    if fault == "missing-rank" and rank == ranks - 1:
        continue
    (out / f"rank{rank}.engine").write_bytes(b"engine" * (rank + 1))
version = "0.11.0" if fault == "version" else os.environ["VERSION"]
document = {"version": version, "pretrained_config": config, "build_config": build}
(out / "config.json").write_text(json.dumps(document))
cache = given.get("output_timing_cache") or given.get("timing_cache")
before = Path(cache).read_text() if Path(cache).is_file() else ""
Path(cache).write_text(before + "timed;")
print("Total time of building all engines: 00:00:01")
"""

_CONVERT = """\
import argparse, json
from pathlib import Path

parser = argparse.ArgumentParser()
for name in ("model_dir", "output_dir", "dtype", "tp_size", "pp_size", "workers"):
    parser.add_argument(f"--{name}")
given = parser.parse_args()
config = json.loads(Path(given.model_dir, "config.json").read_text())
assert Path(given.model_dir, "model.safetensors").read_bytes() == b"weights"
tp, pp = int(given.tp_size), int(given.pp_size)
out = Path(given.output_dir)
(out / "rank0.safetensors").write_bytes(b"shard")
mapping = {"world_size": tp * pp, "tp_size": tp, "pp_size": pp}
made = {
    "architecture": config["architectures"][0], "dtype": given.dtype,
    "quantization": {}, "mapping": mapping,
}
(out / "config.json").write_text(json.dumps(made))
"""

# Does what a daemon does: gives a program the folders under their names inside.
_DOCKER = """\
import os, subprocess, sys
from pathlib import Path

if sys.argv[1] == "rm":
    Path(os.environ["DOCKER_LOG"]).open("a").write("rm " + sys.argv[-1] + chr(10))
    sys.exit(0)
words, mounts, program = sys.argv[2:], {}, ""
environment = {}
alone = {"--rm", "--init"}
while words[0].startswith("--"):
    name = words.pop(0)
    value = "" if name in alone else words.pop(0)
    if name == "--mount":
        fields = dict(item.partition("=")[::2] for item in value.split(","))
        mounts[fields["target"]] = fields["source"]
    elif name == "--env":
        key, _, text = value.partition("=")
        environment[key] = text
    elif name == "--entrypoint":
        program = value
    elif name == "--gpus":
        environment["CUDA_VISIBLE_DEVICES"] = value.strip('"').removeprefix("device=")
image = words.pop(0)
Path(os.environ["DOCKER_LOG"]).open("a").write(f"run {image} {program}" + chr(10))
work = mounts.pop("/work", None)
for target, source in mounts.items():
    place = Path(work, os.path.relpath(target, "/work"))
    if not place.is_symlink():
        place.unlink() if place.is_file() else place.rmdir()
        place.symlink_to(source)
inside = {k: os.environ[k] for k in ("PATH", "PYTHONPATH", "FAULT", "VERSION")}
done = subprocess.run([program, *words], cwd=work or "/", env={**inside, **environment})
sys.exit(done.returncode)
"""


def install(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    version: str = "0.12.0",
    fault: str = "",
    gpus: str = A10G,
    tensorrt: str = "10.3.0",
    module: str = "class Mapping: ...\n",
) -> None:
    """
    Put the programs of a GPU machine on PATH.

    Args:
        root: An empty folder.
        monkeypatch: Sets the environment.
        version: Version of TensorRT-LLM.
        fault: What `trtllm-build` does wrong.
        gpus: What `nvidia-smi` prints; its status is 9 where that is an error.
        tensorrt: Version of TensorRT.
        module: Source of `tensorrt_llm` after its version.
    """
    programs = root / "bin"
    programs.mkdir(parents=True)
    for name, source in (("trtllm-build", _BUILD), ("docker", _DOCKER)):
        _program(programs / name, f"#!{sys.executable}\n{source}")
    status = 9 if gpus == NO_DRIVER else 0
    smi = f"#!/bin/sh\ncat <<'END'\n{gpus}\nEND\nexit {status}\n"
    _program(programs / "nvidia-smi", smi)
    package = root / "site" / "tensorrt_llm"
    package.mkdir(parents=True)
    text = f"__version__ = {version!r}\nprint('[TensorRT-LLM] hello')\n{module}"
    (package / "__init__.py").write_text(text)
    (package / "commands").mkdir()
    (package / "commands" / "build.py").touch()
    (root / "site" / "tensorrt.py").write_text(f"__version__ = {tensorrt!r}\n")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(root / "site"))
    monkeypatch.setenv("FAULT", fault)
    monkeypatch.setenv("VERSION", version)
    monkeypatch.setenv("DOCKER_LOG", str(root / "docker.log"))


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def install_converter(root: Path, script: str) -> Path:
    """TensorRT-LLM's `examples` with one converter in it."""
    examples = root / "examples"
    path = examples / script.removeprefix("examples/")
    path.parent.mkdir(parents=True)
    path.write_text(_CONVERT)
    return examples


def checkpoint(root: Path, plan: EnginePlan) -> Path:
    """A checkpoint as far as `trtllm-build` here reads it."""
    folder = root / "checkpoint"
    folder.mkdir(parents=True)
    document = {
        "architecture": "LlamaForCausalLM",
        "dtype": plan.dtype,
        "vocab_size": 32000,
        "quantization": {
            "quant_algo": plan.quant_algo or None,
            "kv_cache_quant_algo": plan.kv_cache_quant_algo or None,
        },
        "mapping": {
            "world_size": plan.num_ranks,
            "tp_size": plan.tensor_parallel_size,
            "pp_size": plan.pipeline_parallel_size,
        },
    }
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def engine_job(
    root: Path, plan: EnginePlan, inputs: Mapping[str, Path], **settings: Any
) -> Job:
    """The stage's job; its parameters cross a process as JSON."""
    out, state = root / "out", root / "state"
    out.mkdir(parents=True)
    state.mkdir()
    return Job(
        stage="llama/compile",
        params=json.loads(json.dumps(plan.to_json())),
        inputs=inputs,
        out=out,
        state=state,
        settings={"runner": "local", **settings},
    )

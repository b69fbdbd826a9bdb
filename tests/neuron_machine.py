"""
Programs and packages that stand for a machine with Neuron devices.

Real processes, found on PATH; `neuron_standins` are the packages that they import.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.calls import Made, NeuronCall
from lmi_build.backends.neuronx.compile_plan import CompilePlan, compile_plan
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.spi import Job

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

STANDINS = Path(__file__).parent / "neuron_standins"
OLD, NEW = "djl-neuronx-0.30.0", "djl-neuronx-0.34.0"
INF2 = "inf2.8xlarge"
# As a Neuron device of an inf2 answers `neuron-ls --json-output`.
DEVICE = {"bdf": "00:1f.0", "nc_count": 2, "memory_size": 34359738368}

# Does what a daemon does: gives a program the folders under their names inside.
_DOCKER = """\
import json, os, subprocess, sys
from pathlib import Path

log = Path(os.environ["DOCKER_LOG"]).open("a")
if sys.argv[1] == "rm":
    log.write(json.dumps({"rm": sys.argv[-1]}) + chr(10))
    sys.exit(0)
if sys.argv[1] == "version":
    print("27.0.0")
    sys.exit(0)
words, mounts, program, devices, name = sys.argv[2:], {}, "", [], ""
environment = {}
alone = {"--rm", "--init"}
while words[0].startswith("--"):
    option = words.pop(0)
    value = "" if option in alone else words.pop(0)
    if option == "--mount":
        fields = dict(item.partition("=")[::2] for item in value.split(","))
        mounts[fields["target"]] = (fields["source"], "readonly" in fields)
    elif option == "--env":
        key, _, text = value.partition("=")
        environment[key] = text
    elif option == "--entrypoint":
        program = value
    elif option == "--device":
        devices.append(value)
    elif option == "--name":
        name = value
image = words.pop(0)
work = mounts.pop("/work")[0]
rooted = lambda text: text.replace("/work", work) if text.startswith("/work") else text
document = {"image": image, "devices": devices, "name": name, "words": words}
document["readonly"] = sorted(target for target, (_, only) in mounts.items() if only)
log.write(json.dumps(document) + chr(10))
log.flush()
for target, (source, _) in mounts.items():
    place = Path(rooted(target))
    if not place.is_symlink():
        place.rmdir()
        place.symlink_to(source)
call = Path(work, "call.json")
if words[1] == "build":
    asked = json.loads(call.read_text())
    asked["model"] = rooted(asked["model"])
    call.write_text(json.dumps(asked))
kept = ("PATH", "PYTHONPATH", "FAULT", "STANDIN_TNX", "STANDIN_CC")
kept += ("STANDIN_WITHOUT_TRACE", "STANDIN_NEURON_CORES", "STANDIN_OPTIMUM_NEURON")
inside = {key: os.environ[key] for key in kept if key in os.environ}
inside["STANDIN_CORES"] = str(2 * len(devices))
inside.update({key: rooted(text) for key, text in environment.items()})
done = subprocess.run([program, *map(rooted, words)], cwd=work, env=inside)
sys.exit(done.returncode if done.returncode >= 0 else 128 - done.returncode)
"""


def install(  # noqa: PLR0913 - one word for each thing that a machine can lack
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    release: str = NEW,
    devices: int = 1,
    busy: bool = False,
    instance: str = INF2,
    fault: str = "",
    versions: Mapping[str, str] | None = None,
    compiler: str = "",
) -> Path:
    """
    Put a machine's programs on PATH and a toolchain on the path of Python.

    Args:
        root: A folder.
        monkeypatch: Sets the environment.
        release: Whose versions the packages have.
        devices: Neuron devices, of two cores each.
        busy: Whether processes use them.
        instance: Type of the machine.
        fault: What the toolchain does wrong.
        versions: Versions of distributions that are others than the release's; empty
            for none at all.
        compiler: Version that the compiler's module says; empty for its own.

    Returns:
        The folder of the packages.
    """
    site = install_packages(root / "site", release, versions or {})
    programs = root / "bin"
    programs.mkdir(parents=True)
    rows = [
        {**DEVICE, "neuron_device": index, "neuron_processes": [{"pid": 1}] * busy}
        for index in range(devices)
    ]
    listed = "\n".join(f"neuron{index}" for index in range(devices))
    _program(programs / "ls", f"#!/bin/sh\n/bin/cat <<'END'\nnull\n{listed}\nEND\n")
    _program(
        programs / "cat",
        f"#!/bin/sh\ncase $1 in *product_name) echo {instance};;"
        " *neuron*) echo 2.19.64.0;; esac\n",
    )
    text = json.dumps(rows)
    _program(programs / "neuron-ls", f"#!/bin/sh\n/bin/cat <<'END'\n{text}\nEND\n")
    _program(programs / "neuronx-cc", "#!/bin/sh\n")
    _program(programs / "docker", f"#!{sys.executable}\n{_DOCKER}")
    (programs / "python3").symlink_to(sys.executable)
    found = neuron_releases()[release]
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("FAULT", fault)
    monkeypatch.setenv("STANDIN_WITHOUT_TRACE", "1")
    monkeypatch.setenv("STANDIN_TNX", found.transformers_neuronx)
    said = compiler or f"{found.neuronx_cc}+4a9b2326"
    monkeypatch.setenv("STANDIN_CC", said)
    monkeypatch.setenv("STANDIN_CORES", str(2 * devices))
    monkeypatch.setenv("DOCKER_LOG", str(root / "docker.log"))
    return site


def install_packages(site: Path, release: str, versions: Mapping[str, str]) -> Path:
    """The stand-ins with the metadata of a release's packages."""
    for package in STANDINS.iterdir():
        if package.is_dir() and package.name != "__pycache__":
            shutil.copytree(package, site / package.name)
    (site / "transformers.py").write_text("class AutoConfig: ...\n")
    found = neuron_releases()[release]
    rows = {
        "neuronx-cc": f"{found.neuronx_cc}+4a9b2326",
        "torch-neuronx": found.torch_neuronx,
        "libneuronxla": found.libneuronxla or "2.0.5347.0",
        "transformers-neuronx": found.transformers_neuronx,
        "transformers": found.transformers,
        **versions,
    }
    for name, version in rows.items():
        if version:
            write_metadata(site, name, version)
    return site


def write_metadata(site: Path, name: str, version: str) -> None:
    """What makes a package an installed distribution."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / "METADATA").write_text(text)


def llama_call(*, cores: int = 2, **changed: Any) -> NeuronCall:
    """A Llama with one bucket of tokens and two of prompts: three graphs."""
    config = {
        "continuous_batching": Made(
            factory="transformers_neuronx.config.ContinuousBatchingConfig",
            arguments={"batch_size_for_shared_caches": 4},
        ),
        "on_device_embedding": True,
        **changed.pop("config", {}),
    }
    arguments = {
        "n_positions": [256],
        "batch_size": 4,
        "amp": "bf16",
        "tp_degree": cores,
        "context_length_estimate": [64, 128],
        "neuron_config": Made(
            factory="transformers_neuronx.config.NeuronConfig", arguments=config
        ),
        **changed.pop("arguments", {}),
    }
    values: dict[str, Any] = {
        "loader": "tnx",
        "model_class": "transformers_neuronx.NeuronAutoModelForCausalLM",
        "arguments": arguments,
        "steps": (
            ("to_neuron", {}),
            ("save", {"directory": {"path": "compiled"}, "sharded_weights": True}),
        ),
        "environment": {"NEURON_CC_FLAGS": "--logfile /tmp/compile.log"},
        "flags": (),
        "num_graphs": 3,
        "num_neffs": 3,
        "files": ("config.json", "compiled/VERSION", "compiled/config.json"),
        "target": "trn1",
        **changed,
    }
    return NeuronCall(**values)


def llama_plan(
    call: NeuronCall | None = None, *, release: str = NEW, **changed: Any
) -> CompilePlan:
    """A call with its release."""
    values = {
        "num_cores": 2,
        "block": {"auto_cast_type": "bf16", "compiler_type": "neuronx-cc"},
        **changed,
    }
    return compile_plan(call or llama_call(), neuron_releases()[release], **values)


def llama_folder(folder: Path, *, kind: str = "llama") -> Path:
    """A model of two layers with its weights."""
    folder.mkdir(parents=True)
    config = {
        "model_type": kind,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 8,
        "n_ctx": 256,
    }
    (folder / "config.json").write_text(json.dumps(config))
    names = ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"]
    names += [f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)]
    header, data = {}, b""
    for index, name in enumerate(names):
        part = bytes([index + 1]) * 32
        offsets = [len(data), len(data) + len(part)]
        header[name] = {"dtype": "BF16", "shape": [4, 4], "data_offsets": offsets}
        data += part
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + data
    )
    return folder


def neuron_job(
    root: Path, plan: CompilePlan, source: Path | None = None, **settings: Any
) -> Job:
    """The stage's job; its parameters cross a process as JSON."""
    out, state = root / "out", root / "state"
    out.mkdir(parents=True)
    state.mkdir(exist_ok=True)
    return Job(
        stage="llama/compile",
        params=json.loads(json.dumps(plan.to_json())),
        inputs={"source": source or llama_folder(root / "source")},
        out=out,
        state=state,
        settings={
            "runner": "local",
            "target": "ml.inf2.8xlarge",
            "cache": str(root / "graphs"),
            **settings,
        },
    )


def files_of(folder: Path) -> list[str]:
    """Every file below a folder, by its path in it."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    )


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)

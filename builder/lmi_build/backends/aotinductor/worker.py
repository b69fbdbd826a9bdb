"""
Compiles a checkpoint to an AOTInductor engine, in a worker process.

Order: the decoder is read and its numbers are written; then every graph is exported
and compiled in a process of its own, two at a time, with the numbers mapped from that
file; then the compiled files go into one package under names of ours.

The compiler writes where it works into what it makes. So it always works in one fixed
folder, and what it writes of the places of its own headers is cut off: two builds give
the same bytes, wherever they run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lmi_build.backends.checkpoint_config import read_checkpoint_config
from lmi_build.errors import SourceInvalid, StageFailed, ToolMissing
from lmi_build.events import StageNote, StageProgress
from lmi_build.store.files import locked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmi_build.backends.aotinductor.graphs import Graph
    from lmi_build.events import Emit
    from lmi_build.spi import Job

RECORD_NAME = "engine.json"
PACKAGE_NAME = "engine.pt2"
WEIGHTS_NAME = "weights.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
# Where the compiler works, on every machine.
WORKPLACE = Path("/tmp/lmi-build-aotinductor")  # noqa: S108 - the same on every machine
PROCESSES = 2
KERNELS_NAME = "kernels.o"
SCORE_ROWS = 32
# Slots up to which Inductor's own loops run in one thread.
FEW_ROWS = 8
# Endings of what a package needs of a graph's compiled files.
_KEPT = (".wrapper.so", ".wrapper_metadata.json")
# Instruction sets by name: the compiler's names for them, the width of a register in
# bits, and what a processor must say of itself.
ISAS: Mapping[str, tuple[str, int, tuple[str, ...]]] = {
    "avx2": ("x86-64-v3", 256, ("avx2", "bmi2", "f16c", "fma")),
    "avx512": (
        "x86-64-v4",
        512,
        ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"),
    ),
}


def run(job: Job, emit: Emit) -> None:
    """
    Fill `job.out` with an engine folder.

    Raises:
        SourceInvalid: The checkpoint is broken or incomplete (`compile.*`).
        Unsupported: It holds what the engine cannot say exactly.
        ToolMissing: `compile.no-compiler`.
        StageFailed: `compile.graph-failed`.
    """
    params = cast("dict[str, Any]", job.params)
    config = read_checkpoint_config(job.inputs["checkpoint"])
    compiler = _compiler()
    record = _write_numbers(job, emit, config, params)
    from lmi_build.backends.aotinductor.graphs import graphs_of

    graphs = graphs_of(
        context_buckets=params["context_buckets"],
        batch_sizes=params["batch_sizes"],
        score_rows=SCORE_ROWS,
    )
    WORKPLACE.mkdir(mode=0o700, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(locked(WORKPLACE / "lock"))
        _compile_kernels(params, compiler)
        files = _compile(job, emit, graphs, params, compiler)
        _package(files, job.out / PACKAGE_NAME)
    record["graphs"] = [graph.name for graph in graphs]
    _write_json(job.out / RECORD_NAME, record)
    _copy_tokenizer(job.inputs["checkpoint"], job.out)


def _compiler() -> str:
    """The C++ compiler, as a path."""
    name = os.environ.get("CXX") or "g++"
    found = shutil.which(name)
    if found is None:
        raise ToolMissing(
            f"there is no C++ compiler `{name}`, which turns graphs into native code",
            code="compile.no-compiler",
            hints=("install it on the build machine: `apt-get install g++`",),
        )
    return found


def _write_numbers(
    job: Job, emit: Emit, config: Mapping[str, Any], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Weights and the decoder without them; what the engine says of itself."""
    import torch
    from safetensors.torch import save_file

    from lmi_build.backends.aotinductor.graphs import save_skeleton
    from lmi_build.backends.aotinductor.loading import Loader

    loader = Loader(job.inputs["checkpoint"], config)

    def on_block(done: int) -> None:
        total = loader.config.num_layers
        emit(StageProgress(stage=job.stage, done=done, total=total, unit="layers"))

    decoder = loader.load(
        max_seq_len=params["max_seq_len"],
        dtype=getattr(torch, params["dtype"]),
        lm_head_dtype=params["lm_head_dtype"],
        on_block=on_block,
    )
    loader.close()
    if loader.scheme is not None and loader.scheme.kv_cache_dtype != "auto":
        _warn(
            job,
            emit,
            "compile.kv-cache",
            f"the checkpoint means a key-value cache in {loader.scheme.kv_cache_dtype};"
            f" the engine's stays {params['dtype']}, and its scales are not used",
        )
    numbers = {
        f"decoder.{name}": tensor.contiguous()
        for name, tensor in decoder.state_dict().items()
    }
    save_file(numbers, job.out / WEIGHTS_NAME)
    save_skeleton(decoder, job.state / "skeleton")
    isa = params["isa"]
    record: dict[str, Any] = {
        "schema": "lmi-build/aotinductor/v1",
        "torch": torch.__version__.partition("+")[0],
        "device": params["device"],
        "isa": isa,
        "cpu_flags": list(ISAS[isa][2]) if isa in ISAS else [],
        "compute_capability": params["compute_capability"],
        "dtype": params["dtype"],
        "max_seq_len": params["max_seq_len"],
        "num_layers": loader.config.num_layers,
        "hidden_size": loader.config.hidden_size,
        "cache_shape": list(decoder.cache_shape(1)[1:]),
        "eos_token_ids": _eos_token_ids(job.inputs["checkpoint"], config),
    }
    return record


def _warn(job: Job, emit: Emit, code: str, message: str) -> None:
    emit(StageNote(stage=job.stage, level="warning", code=code, message=message))


def _eos_token_ids(checkpoint: Path, config: Mapping[str, Any]) -> list[int]:
    """What ends an answer: `generation_config.json` knows more than `config.json`."""
    path = checkpoint / "generation_config.json"
    generation = json.loads(path.read_bytes()) if path.is_file() else {}
    value = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(isinstance(item, int) for item in ids):
        raise SourceInvalid(
            "neither generation_config.json nor config.json has an `eos_token_id`",
            code="compile.checkpoint-broken",
            hints=("add `eos_token_id` to the model's config.json",),
        )
    return sorted(set(ids))


def _compile_kernels(params: Mapping[str, Any], compiler: str) -> None:
    """Our own kernels, which every graph for processors links."""
    from lmi_build.backends.aotinductor.kernels import compile_kernels

    if params["device"] != "cpu":
        return
    wrapped = _compiler_without_places(compiler)
    march = ISAS[params["isa"]][0]
    try:
        compile_kernels(wrapped, march, WORKPLACE / KERNELS_NAME)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode("utf-8", "replace").strip().splitlines()[-5:]
        raise StageFailed(
            f"`{compiler}` ended with status {error.returncode} on the kernels:\n  "
            + "\n  ".join(lines),
            code="compile.graph-failed",
            hints=("install g++ 12 or later: `apt-get install g++`",),
        ) from error


def _compile(
    job: Job,
    emit: Emit,
    graphs: Sequence[Graph],
    params: Mapping[str, Any],
    compiler: str,
) -> dict[str, list[str]]:
    """Compiled files of every graph; `PROCESSES` of them at a time."""
    shutil.rmtree(WORKPLACE / "work", ignore_errors=True)
    waiting = list(graphs)
    running: list[tuple[Graph, subprocess.Popen[bytes]]] = []
    files: dict[str, list[str]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < PROCESSES:
                graph = waiting.pop(0)
                running.append((graph, _start(job, graph, params, compiler)))
            graph, process = running[0]
            if process.wait() != 0:
                raise _graph_failed(job, graph, process.returncode)
            running.pop(0)
            result = job.state / f"{graph.name}.json"
            files[graph.name] = json.loads(result.read_bytes())
            emit(
                StageProgress(
                    stage=job.stage, done=len(files), total=len(graphs), unit="graphs"
                )
            )
    finally:
        for _, process in running:
            process.terminate()
            process.wait()
    return {graph.name: files[graph.name] for graph in graphs}


def _start(
    job: Job, graph: Graph, params: Mapping[str, Any], compiler: str
) -> subprocess.Popen[bytes]:
    from lmi_build.backends.aotinductor.graphs import Request

    place = WORKPLACE / "work" / graph.name
    place.mkdir(parents=True)
    request = job.state / f"{graph.name}.request.json"
    Request(
        graph=graph,
        skeleton=str(job.state / "skeleton"),
        weights=str(job.out / WEIGHTS_NAME),
        device=params["device"],
        isa=params["isa"],
        kernels=KERNELS_NAME if params["device"] == "cpu" else "",
        options=inductor_options(params, graph),
        result=str(job.state / f"{graph.name}.json"),
    ).write(request)
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(place),
        "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        # Each instruction set would be tried by compiling a program.
        "TORCHINDUCTOR_VEC_ISA_OK": "1",
        "AOT_INDUCTOR_ENABLE_LINE_TABLES": "0",
        "CXX": _compiler_without_places(compiler),
        # Where the linker looks for the kernels.
        "LIBRARY_PATH": str(WORKPLACE),
    }
    with (job.state / f"{graph.name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "lmi_build.backends.aotinductor.graphs", request],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def inductor_options(params: Mapping[str, Any], graph: Graph) -> dict[str, Any]:
    """The compiler's settings."""
    # A step's own loops are shorter than starting a second thread takes.
    few_rows = graph.kind == "generation" and graph.size <= FEW_ROWS
    threads = (
        {"cpp.threads": 1}
        if few_rows
        # The server's own number of threads, not the builder's.
        else {"cpp.dynamic_threads": True}
    )
    options: dict[str, Any] = {
        "aot_inductor.package": True,
        "aot_inductor.package_constants_in_so": False,
        # They take longer than the one file that would use them.
        "aot_inductor.precompile_headers": False,
        **threads,
    }
    if params["isa"] in ISAS:
        march, width, _ = ISAS[params["isa"]]
        options |= {"cpp.march": march, "cpp.simdlen": width}
    return options


def _compiler_without_places(compiler: str) -> str:
    """A compiler that writes no folder of this machine into what it makes."""
    import torch

    path = WORKPLACE / "cxx"
    include = Path(torch.__file__).parent / "include"
    path.write_text(
        "#!/bin/sh\n"
        f"exec '{compiler}' -ffile-prefix-map='{include}'=torch"
        f" -ffile-prefix-map='{WORKPLACE}'=build \"$@\"\n",
        "utf-8",
    )
    path.chmod(0o700)
    return str(path)


def _graph_failed(job: Job, graph: Graph, status: int) -> StageFailed:
    log = job.state / f"{graph.name}.log"
    lines = log.read_text("utf-8", "replace").strip().splitlines()[-5:]
    ended = f"signal {-status}" if status < 0 else f"status {status}"
    return StageFailed(
        f"compiling `{graph.name}` ended with {ended}:\n  " + "\n  ".join(lines),
        code="compile.graph-failed",
        hints=(
            f"its whole log is {log}",
            "lower `bounds`, or build on a machine with more memory",
        ),
    )


def _package(files: Mapping[str, Sequence[str]], package: Path) -> None:
    """One package; a graph's files are called after it."""
    from torch._inductor.package.package import package_aoti

    named: dict[str, Any] = {}
    for graph, found in files.items():
        folder = WORKPLACE / "work" / f"{graph}.files"
        folder.mkdir()
        named[graph] = []
        for ending in _KEPT:
            source = next(file for file in found if file.endswith(ending))
            kept = folder / f"{graph}{ending}"
            shutil.copyfile(source, kept)
            named[graph].append(str(kept))
        _strip(folder / f"{graph}{_KEPT[0]}")
    package_aoti(str(package), named)


def _strip(library: Path) -> None:
    """Drop names and lines that only a debugger reads, where there is a tool for it."""
    tool = shutil.which("strip")
    if tool is not None:
        subprocess.run([tool, "--strip-unneeded", library], check=True)


def _copy_tokenizer(checkpoint: Path, out: Path) -> None:
    for name in TOKENIZER_FILES:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, out / name)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    path.write_text(text, "utf-8")

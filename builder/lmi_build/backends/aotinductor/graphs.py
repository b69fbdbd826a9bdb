"""
One graph exported and compiled, in a process of its own.

`python -m lmi_build.backends.aotinductor.graphs REQUEST` reads a request, compiles
its graph, and writes the names of the compiled files beside it. Graphs share nothing,
so several are compiled at once; their weights are mapped from one file.

Shape suffixes: as in `decoder`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmi_build.backends.aotinductor.decoder import Decoder

KINDS = ("context", "generation", "score")


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """
    One graph.

    Args:
        kind: One of `KINDS`.
        size: Tokens of a piece of a prompt, slots, or rows that are scored.
    """

    kind: str
    size: int

    @property
    def name(self) -> str:
        """Its name in the package."""
        return f"{self.kind}_{self.size}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """
    What a compiling process is told.

    Args:
        graph: Which.
        skeleton: File of the decoder without its numbers.
        weights: File of its numbers.
        device: `cpu` or `cuda`.
        isa: `avx2` or `avx512`; empty leaves it to the compiler.
        kernels: Name of the object file of our kernels, which the linker finds; empty
            for a GPU.
        options: Inductor's settings.
        result: Where the names of the compiled files go.
    """

    graph: Graph
    skeleton: str
    weights: str
    device: str
    isa: str
    kernels: str
    options: dict[str, Any]
    result: str

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), sort_keys=True), "utf-8")

    @classmethod
    def read(cls, path: Path) -> Request:
        """What `write` wrote."""
        document = json.loads(path.read_bytes())
        return cls(**{**document, "graph": Graph(**document["graph"])})


def graphs_of(
    *, context_buckets: Sequence[int], batch_sizes: Sequence[int], score_rows: int
) -> tuple[Graph, ...]:
    """Every graph of an engine, the slowest to compile first."""
    return (
        *(Graph(kind="generation", size=size) for size in sorted(batch_sizes)[::-1]),
        *(Graph(kind="context", size=size) for size in sorted(context_buckets)[::-1]),
        Graph(kind="score", size=score_rows),
    )


def main(arguments: Sequence[str]) -> int:
    """Compile what the request file says."""
    request = Request.read(Path(arguments[0]))
    files = compile_graph(request)
    Path(request.result).write_text(json.dumps(files), "utf-8")
    return 0


def compile_graph(request: Request) -> list[str]:
    """Export and compile; names of the files that a package takes."""
    import torch
    from torch import nn
    from torch._inductor import inductor_prims  # noqa: F401 - `computed` needs it

    _allow_only(request.isa)
    decoder = load_skeleton(Path(request.skeleton), Path(request.weights))
    decoder = decoder.to(request.device)
    method = getattr(decoder, request.graph.kind)

    class Whole(nn.Module):
        """One method of the decoder; weights keep the names that they have in all."""

        def __init__(self) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(self, *inputs: Any) -> Any:
            return method(*inputs)

    example = inputs_of(decoder, request.graph, request.device)
    with torch.no_grad():
        exported = torch.export.export(Whole().eval(), example, strict=False)
        files = torch._inductor.aot_compile(  # noqa: SLF001
            exported.module(check_guards=False), example, options=_options(request)
        )
    if not isinstance(files, list):
        raise TypeError(f"the compiler gave {type(files).__name__}, not files")
    return [file for file in files if isinstance(file, str)]


def _options(request: Request) -> dict[str, Any]:
    """Inductor's settings, those included that JSON cannot say."""
    from lmi_build.backends.aotinductor.kernels import c_interface

    if not request.kernels:
        return request.options
    return {
        **request.options,
        "aot_inductor.custom_ops_to_c_shims": c_interface(),
        "aot_inductor.custom_op_libs": [f":{request.kernels}"],
    }


def _allow_only(isa: str) -> None:
    """
    Leave the compiler one instruction set to choose.

    It takes the richest of one width that the machine has, and would use what other
    machines of the same name lack.
    """
    from torch._inductor import cpu_vec_isa

    class Avx512(cpu_vec_isa.VecAVX512):
        """Without the products of bfloat16 that a few of them have beside it."""

        def build_arch_flags(self) -> str:
            return self._arch_flags

    kinds = {"avx2": cpu_vec_isa.VecAVX2, "avx512": Avx512}
    if isa in kinds:
        cpu_vec_isa.supported_vec_isa_list[:] = [kinds[isa]()]


def inputs_of(decoder: Decoder, graph: Graph, device: str) -> tuple[Any, ...]:
    """Inputs of a graph, with the shapes that it will have for ever."""
    import torch

    def whole(count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int64, device=device)

    if graph.kind == "score":
        width = decoder.config.hidden_size
        return (torch.zeros(graph.size, width, dtype=decoder.dtype, device=device),)
    slots = graph.size if graph.kind == "generation" else 1
    shape = decoder.cache_shape(slots)
    caches = [
        [torch.zeros(shape, dtype=decoder.dtype, device=device) for _ in decoder.blocks]
        for _ in range(2)
    ]
    if graph.kind == "generation":
        return (whole(slots), whole(slots), *caches)
    return (whole(graph.size), torch.tensor([0, graph.size], device=device), *caches)


def save_skeleton(decoder: Decoder, path: Path) -> None:
    """The decoder without its numbers; it may not be used afterwards."""
    import torch

    torch.save(decoder.to("meta"), path)


def load_skeleton(path: Path, weights: Path) -> Decoder:
    """The decoder with its numbers mapped from the engine's file."""
    import torch
    from safetensors.torch import load_file

    decoder: Decoder = torch.load(path, weights_only=False)
    numbers = {
        name.removeprefix("decoder."): tensor
        for name, tensor in load_file(weights).items()
    }
    decoder.load_state_dict(numbers, assign=True)
    return decoder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What the backend `aotinductor` tells the planner."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.backends.aotinductor.backend import PROVIDER
from lmi_build.backends.aotinductor.checks import built_architectures
from lmi_build.backends.aotinductor.options import read_options
from lmi_build.backends.aotinductor.worker import ISAS
from lmi_build.registry import backend as find_backend
from lmi_build.spi import Answer, Backend, Host
from lmi_build.values.bounds import Bounds
from lmi_build.values.recipe import CompileSpec, Recipe
from packed import HOST, sample_recipe
from smollm2 import GPTQ, facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.errors import Problem
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme

AVX512 = "flags : avx2 avx512f avx512bw avx512cd avx512dq avx512vl"


def recipe(
    *, options: dict[str, Any] | None = None, bounds: Bounds | None = None, **spec: Any
) -> Recipe:
    return sample_recipe(
        compile=CompileSpec(backend="aotinductor", options=options or {}, **spec),
        bounds=bounds or Bounds(max_input_len=512, max_output_len=128),
    )


def problems(
    scheme: QuantScheme = GPTQ, model: ModelFacts | None = None, **spec: Any
) -> list[Problem]:
    found = PROVIDER.check(recipe(**spec), model or facts(), scheme)
    return [p for p in found if p.path != "serve.options"]


def host(*, torch: str = "2.13.0+cpu", **answers: str) -> Host:
    """A machine whose small programs say something; others are not there."""

    def ask(words: Sequence[str]) -> Answer:
        name = words[0].replace("+", "p").replace("-", "_")
        found = answers.get(name)
        return Answer(status=127 if found is None else 0, output=found or "")

    return replace(HOST, ask=ask, versions=lambda names: dict.fromkeys(names, torch))


def test_it_is_found_by_its_name() -> None:
    """The entry point leads to a provider that implements the interface."""
    assert find_backend("aotinductor") is PROVIDER
    assert isinstance(PROVIDER, Backend)


def test_the_planner_never_imports_torch() -> None:
    """The provider's module brings in nothing heavy."""
    code = (
        "import sys, lmi_build.backends.aotinductor.backend as b;"
        "print(sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert found.stdout.strip() == "[]"


def test_every_dense_architecture_of_the_map_is_built() -> None:
    """Mixtures of experts are left out, and the refusal names what is built."""
    (problem,) = problems(
        model=facts(architectures=["MixtralForCausalLM"], model_type="mixtral")
    )

    assert "MixtralForCausalLM" not in built_architectures()
    assert {"LlamaForCausalLM", "GPT2LMHeadModel", "OPTForCausalLM"} <= set(
        built_architectures()
    )
    assert problem.unsupported
    assert all(name in problem.hint for name in built_architectures())


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"target": "ml.inf2.xlarge"}, "compile.target"),
        ({"tensor_parallel_size": 2}, "compile.tensor_parallel_size"),
        ({"artifact": "checkpoint"}, "compile.artifact"),
        ({"release": "djl-lmi-0.36.0"}, "compile.release"),
        ({"options": {"isa": "sse2"}}, "compile.options.isa"),
        ({"options": {"iss": "avx2"}}, "compile.options.iss"),
        ({"options": {"context_buckets": [8]}}, "compile.options.context_buckets"),
        ({"options": {"context_buckets": []}}, "compile.options.context_buckets"),
        (
            {"bounds": Bounds(max_input_len=9, max_output_len=9, max_beam_width=2)},
            "bounds.max_beam_width",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_at_its_place(
    spec: dict[str, Any], path: str
) -> None:
    """One problem, where the recipe says it, with a way out."""
    (problem,) = problems(**spec)

    assert problem.path == path
    assert problem.hint


@pytest.mark.parametrize(
    "scheme",
    [
        replace(GPTQ, weight_bits=3),
        replace(GPTQ, packing="float-quantized", weight_bits=8, weight_dtype="float"),
    ],
)
def test_formats_without_a_kernel_are_refused(scheme: QuantScheme) -> None:
    """Neither 3-bit nor fp8 weights are widened in silence."""
    (problem,) = problems(scheme)

    assert problem.unsupported


def test_learned_positions_end_somewhere() -> None:
    """A model with a table of positions is refused over its end, not at it."""
    model = facts(architectures=["OPTForCausalLM"], model_type="opt")
    over = Bounds(max_input_len=8192, max_output_len=1)
    at = Bounds(max_input_len=8191, max_output_len=1)

    assert problems(model=model, bounds=at) == []
    (problem,) = problems(model=model, bounds=over)
    assert problem.code == "compile.too-few-positions"
    assert "8192" in problem.message
    assert "8193" in problem.message


@pytest.mark.parametrize(
    ("longest", "given", "wanted"),
    [
        (512, (), (128, 512)),
        (20, (), (16, 20)),
        (4, (), (16,)),
        (512, (256, 64, 256), (64, 256)),
    ],
)
def test_buckets_are_few_and_in_order(
    longest: int, given: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    """By default the longest prompt and a quarter of it."""
    options = read_options({"context_buckets": list(given)} if given else {})

    assert options.buckets(longest) == wanted


def test_the_isa_is_named_in_the_key() -> None:
    """`default` is what the machine has, so that the key says what the bytes are."""

    def isa(machine: Host, **options: Any) -> object:
        return PROVIDER.lower(recipe(options=options), machine)["isa"]

    assert isa(host(grep=AVX512)) == "avx512"
    assert isa(host(grep="flags : avx2 fma avx512f")) == "avx2"
    assert isa(HOST) == "avx2"
    assert isa(host(grep=AVX512), isa="avx2") == "avx2"
    assert set(ISAS["avx512"][2]) <= set(AVX512.split())


@pytest.mark.parametrize(
    ("machine", "spec", "code"),
    [
        (HOST, {}, "compile.no-compiler"),
        (host(gpp="g++ 12"), {"target": "cuda"}, "compile.no-gpu"),
        (host(gpp="g++ 12", torch="2.6.0"), {}, "compile.old-torch"),
        (
            host(gpp="g++ 12", grep="flags : avx2"),
            {"options": {"isa": "avx512"}},
            "compile.other-isa",
        ),
    ],
)
def test_what_the_building_machine_lacks_is_said_by_the_plan(
    machine: Host, spec: dict[str, Any], code: str
) -> None:
    """A blocker with a code; the plan itself is whole."""
    (stage,) = PROVIDER.stages(recipe(**spec), facts(), GPTQ, machine)

    assert stage.blocker is not None
    assert stage.blocker.code == code
    assert stage.blocker.hint


def test_a_gpu_is_named_by_its_compute_capability() -> None:
    """Code for one GPU does not run on another: the number is in key and manifest."""
    machine = host(gpp="g++ 12", nvidia_smi="9.0\n9.0\n")
    made = recipe(target="cuda")
    (stage,) = PROVIDER.stages(made, facts(), GPTQ, machine)
    versions = dict.fromkeys(PROVIDER.info.distributions, "1.2.3")
    serving = PROVIDER.serving(made, facts(), GPTQ, machine, versions)

    assert stage.blocker is None
    assert stage.params["compute_capability"] == "9.0"
    assert stage.params["isa"] == ""
    assert serving.compatibility["compute_capability"] == "9.0"
    assert serving.compatibility["torch"] == "1.2.3"


def test_serving_needs_torch_and_no_transformers() -> None:
    """What is pinned is what loads the engine."""
    versions = dict.fromkeys(PROVIDER.info.distributions, "1.2.3")
    serving = PROVIDER.serving(recipe(), facts(), GPTQ, HOST, versions)

    names = {line.partition("==")[0] for line in serving.requirements}
    assert names == {"jinja2", "numpy", "safetensors", "tokenizers", "torch"}


def test_estimates_follow_the_format() -> None:
    """4 bits are smaller than 8, and those than float."""
    sizes = [
        PROVIDER.estimate(recipe(), facts(), scheme).disk_bytes
        for scheme in (
            GPTQ,
            replace(GPTQ, weight_bits=8),
            replace(GPTQ, weight_bits=16, weight_dtype="float", packing="none"),
        )
    ]

    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3


def test_pins_are_what_an_index_has() -> None:
    """A build of torch for CPUs is pinned by its release, which pip can find."""
    versions = {
        **dict.fromkeys(PROVIDER.info.distributions, "1"),
        "torch": "2.13.0+cpu",
    }
    serving = PROVIDER.serving(recipe(), facts(), GPTQ, HOST, versions)

    assert "torch==2.13.0" in serving.requirements
    assert serving.compatibility["torch"] == "2.13.0"

"""What the backend `onnxruntime` tells the planner."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.backends import onnxruntime as backend
from lmi_build.backends.onnxruntime import FLOAT_ERROR, INTEGER_ERROR, PROVIDER
from lmi_build.backends.onnxruntime_options import Options
from lmi_build.backends.onnxruntime_target import HALF_ERROR
from lmi_build.catalog.onnxruntime_models import onnxruntime_models
from lmi_build.package.properties import property_problem
from lmi_build.registry import backend as find_backend
from lmi_build.spi import Backend
from lmi_build.values.bounds import Bounds
from lmi_build.values.recipe import (
    CompileSpec,
    ModelSpec,
    QuantSpec,
    Recipe,
    ServeSpec,
)
from packed import HOST, sample_recipe
from smollm2 import GPTQ, facts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.errors import Problem
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme

INT8 = replace(GPTQ, weight_bits=8, group_size=-1)
FLOAT = replace(GPTQ, weight_bits=16, weight_dtype="float", packing="none")
BUILT = [row.name for row in onnxruntime_models().values() if not row.refused]
VERSIONS = dict.fromkeys(PROVIDER.info.distributions, "1.2.3")


def recipe(
    *,
    options: Mapping[str, Any] | None = None,
    bounds: Bounds | None = None,
    trust_remote_code: bool = False,
    **compile_spec: Any,
) -> Recipe:
    return sample_recipe(
        model=ModelSpec(source="m", trust_remote_code=trust_remote_code),
        quantize=QuantSpec(),
        bounds=bounds or Bounds(max_input_len=512, max_output_len=128),
        compile=CompileSpec(
            backend="onnxruntime", options=options or {}, **compile_spec
        ),
        serve=ServeSpec(),
    )


def problems(
    scheme: QuantScheme = GPTQ, model: ModelFacts | None = None, **spec: Any
) -> list[Problem]:
    return list(PROVIDER.check(recipe(**spec), model or facts(), scheme))


def test_a_pass_shorter_than_a_prompt_is_refused() -> None:
    """A backend that computes prompts in pieces would take it; this one does not."""
    short = Bounds(max_input_len=512, max_output_len=128, max_num_tokens=511)
    enough = Bounds(max_input_len=512, max_output_len=128, max_num_tokens=512)

    (problem,) = problems(bounds=short)

    assert (problem.code, problem.path) == (
        "bounds.num-tokens",
        "bounds.max_num_tokens",
    )
    assert problems(bounds=enough) == []


def test_it_is_found_by_its_name() -> None:
    """The entry point leads to a provider that implements the interface."""
    assert find_backend("onnxruntime") is PROVIDER
    assert isinstance(PROVIDER, Backend)


def test_the_planner_never_imports_the_toolchain() -> None:
    """The provider's module brings in nothing heavy."""
    code = (
        "import sys, lmi_build.backends.onnxruntime as b;"
        "heavy = {'torch', 'numpy', 'onnx', 'onnxruntime', 'onnxruntime_genai'};"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("scheme", [GPTQ, FLOAT, INT8])
@pytest.mark.parametrize("architecture", BUILT)
def test_sound_recipes_pass(scheme: QuantScheme, architecture: str) -> None:
    """Every listed combination has no problem; the others say that float is built."""
    found = problems(scheme, facts(architectures=[architecture]))

    if scheme is FLOAT or onnxruntime_models()[architecture].packed:
        assert found == []
    else:
        assert [problem.hint for problem in found] == ["set `method: none`"]


@pytest.mark.parametrize(
    ("arguments", "path", "words"),
    [
        ({"target": "ml.inf2.xlarge"}, "compile.target", "not for `ml.inf2.xlarge`"),
        ({"release": "x"}, "compile.release", "no releases"),
        ({"tensor_parallel_size": 2}, "compile.tensor_parallel_size", "is 2"),
        ({"pipeline_parallel_size": 4}, "compile.pipeline_parallel_size", "is 4"),
        ({"trust_remote_code": True}, "model.trust_remote_code", "own code"),
        (
            {"bounds": Bounds(max_input_len=1, max_output_len=1, max_beam_width=4)},
            "bounds.max_beam_width",
            "`max_beam_width` is 4",
        ),
        ({"scheme": replace(GPTQ, packing="nvfp4")}, "quantize.method", "`nvfp4`"),
        ({"scheme": replace(GPTQ, weight_bits=3)}, "quantize.bits", "3-bit"),
        ({"scheme": replace(GPTQ, group_size=24)}, "quantize.group_size", "is 24"),
        (
            {"model": facts(architectures=["BloomForCausalLM"])},
            "model.source",
            "`BloomForCausalLM`",
        ),
    ],
)
def test_what_it_cannot_build_is_refused(
    arguments: dict[str, Any], path: str, words: str
) -> None:
    """Each refusal is at its line, says the value and a way out, and is exit 3."""
    (problem,) = problems(**arguments)

    assert problem.path == path
    assert words in problem.message
    assert problem.hint
    assert problem.unsupported
    assert problem.code == "compile.unsupported"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (
            {"acuracy_level": 4},
            "compile.unknown-option",
            "mean `accuracy_level`?",
        ),
        ({"zzz": 4}, "compile.unknown-option", "use `accuracy_level`"),
        ({"accuracy_level": 2}, "compile.bad-option", "use `0`, `1` or `4`"),
        ({"accuracy_level": True}, "compile.bad-option", "use `0`, `1` or `4`"),
        ({"accuracy_level": "4"}, "compile.bad-option", "use `0`, `1` or `4`"),
        ({"block_size": 48}, "compile.bad-option", "`128`"),
        ({"lm_head_dtype": "int4"}, "compile.bad-option", "`float32` or `int8`"),
        ({"intra_op_num_threads": -1}, "compile.bad-option", "every core"),
        ({"intra_op_num_threads": True}, "compile.bad-option", "every core"),
        ({"intra_op_num_threads": 2.5}, "compile.bad-option", "every core"),
    ],
)
def test_options_are_checked(options: dict[str, Any], code: str, words: str) -> None:
    """A wrong option is refused at its own line with what would be right."""
    (problem,) = problems(options=options)

    assert problem.code == code
    assert words in problem.hint
    assert problem.path == f"compile.options.{next(iter(options))}"


def test_lowering_leaves_no_default_open() -> None:
    """The same parameters come out whether a default is written or not."""
    written = PROVIDER.lower(
        recipe(options={name: getattr(Options(), name) for name in Options.__slots__}),
        facts(),
        GPTQ,
    )

    assert written == PROVIDER.lower(recipe(), facts(), GPTQ)
    assert written["max_seq_len"] == 640
    assert written["num_layers"] == 30


def test_lowering_without_a_check_is_a_fault_of_ours() -> None:
    """An unknown option never reaches the worker unread."""
    with pytest.raises(ValueError, match="no option `x`"):
        PROVIDER.lower(recipe(options={"x": 1}), facts(), GPTQ)


def test_serving_pins_what_it_was_built_with() -> None:
    """Requirements carry the versions of the build, settings the bounds."""
    serving = PROVIDER.serving(recipe(), facts(), GPTQ, HOST, VERSIONS)

    assert serving.requirements == (
        "jinja2==1.2.3",
        "numpy==1.2.3",
        "onnxruntime==1.2.3",
        "onnxruntime-genai==1.2.3",
        "tokenizers==1.2.3",
    )
    assert serving.settings["bounds"] == {
        "max_input_len": 512,
        "max_output_len": 128,
        "max_seq_len": 640,
        "max_batch_size": 1,
    }
    handlers = Path(backend.__file__).parents[1] / "package" / "handlers"
    assert (handlers / f"{serving.handler}.py").is_file()


def test_properties_are_safe_for_both_parsers() -> None:
    """Every entry can be written so that LMI's two readers agree."""
    serving = PROVIDER.serving(recipe(), facts(), GPTQ, HOST, VERSIONS)

    assert serving.properties
    for key, value in serving.properties.items():
        assert property_problem(key, value) is None


def test_estimates_are_near_what_was_measured() -> None:
    """SmolLM2 in 4 bits: 161 MB on disk with an int8 head, 830 MB of memory."""
    estimate = PROVIDER.estimate(
        recipe(options={"lm_head_dtype": "int8"}), facts(), GPTQ
    )

    assert 0.85 < estimate.disk_bytes / 161e6 < 1.15
    assert 0.85 < estimate.ram_bytes / 830e6 < 1.15


def test_estimates_grow_with_precision() -> None:
    """More bits never need less room."""
    four = PROVIDER.estimate(recipe(), facts(), GPTQ)
    eight = PROVIDER.estimate(recipe(), facts(), replace(GPTQ, weight_bits=8))
    full = PROVIDER.estimate(recipe(), facts(), FLOAT)

    assert four.disk_bytes < eight.disk_bytes < full.disk_bytes
    assert four.ram_bytes < eight.ram_bytes


W8A8 = replace(
    INT8,
    packing="int-quantized",
    activation_bits=8,
    activation_dtype="int",
    activation_scheme="dynamic",
)


@pytest.mark.parametrize(
    ("scheme", "options", "wanted"),
    [
        (W8A8, {}, "integer"),
        (replace(W8A8, activation_scheme="static", sym=False), {}, "integer"),
        # The user asks for float activations and gets them, with a note.
        (W8A8, {"accuracy_level": 0}, None),
        # Groups have no integer product, and weight-only checkpoints want none.
        (replace(W8A8, group_size=64), {}, None),
        (INT8, {}, None),
        (GPTQ, {}, None),
        (FLOAT, {}, None),
    ],
)
def test_integer_products_are_for_checkpoints_that_mean_them(
    scheme: QuantScheme, options: dict[str, Any], wanted: str | None
) -> None:
    """The parameter is in the key only where the engine's bytes depend on it."""
    written = PROVIDER.lower(recipe(options=options), facts(), scheme)

    assert written.get("products") == wanted
    assert ("products" in written) is (wanted is not None)


@pytest.mark.parametrize(
    ("scheme", "options", "target", "wanted"),
    [
        (FLOAT, {}, "cpu", FLOAT_ERROR),
        (FLOAT, {"lm_head_dtype": "int8"}, "cpu", INTEGER_ERROR),
        (GPTQ, {}, "cpu", INTEGER_ERROR),
        (GPTQ, {"accuracy_level": 1}, "cpu", FLOAT_ERROR),
        (GPTQ, {"accuracy_level": 1, "qkv_accuracy_level": 4}, "cpu", INTEGER_ERROR),
        (GPTQ, {}, "cuda", HALF_ERROR),
    ],
)
def test_an_engine_adds_what_its_activations_add(
    scheme: QuantScheme, options: dict[str, Any], target: str, wanted: float
) -> None:
    """Packed weights add nothing; 8-bit and half-precision activations do."""
    ours = recipe(options=options, target=target)

    assert PROVIDER.proof(ours, facts(), scheme, HOST).relative_error == wanted


def test_blocks_of_the_head_are_in_the_key_where_it_is_rounded() -> None:
    """Engines with a float head keep the keys that they have."""
    rounded = recipe(options={"lm_head_dtype": "int8"})

    assert PROVIDER.lower(rounded, facts(), GPTQ)["lm_head_block_size"] == 64
    assert "lm_head_block_size" not in PROVIDER.lower(recipe(), facts(), GPTQ)


@pytest.mark.parametrize("target", ["cuda", "ml.g5.xlarge"])
def test_cuda_is_a_target(target: str) -> None:
    """Packed and float; the packages that serve it are those with CUDA."""
    ours = recipe(target=target)
    for scheme in (GPTQ, INT8, FLOAT):
        assert list(PROVIDER.check(ours, facts(), scheme)) == []
    serving = PROVIDER.serving(ours, facts(), GPTQ, HOST, VERSIONS)

    assert PROVIDER.lower(ours, facts(), GPTQ)["provider"] == "cuda"
    assert "provider" not in PROVIDER.lower(recipe(), facts(), GPTQ)
    assert serving.requirements == (
        "jinja2==1.2.3",
        "numpy==1.2.3",
        "onnxruntime-gpu==1.2.3",
        "onnxruntime-genai-cuda==1.2.3",
        "tokenizers==1.2.3",
    )


@pytest.mark.parametrize(
    ("scheme", "options", "path"),
    [
        (W8A8, {}, "quantize.method"),
        (replace(W8A8, activation_scheme="static"), {}, "quantize.method"),
        (
            replace(INT8, weight_dtype="float", packing="float-quantized"),
            {},
            "quantize.method",
        ),
        (GPTQ, {"lm_head_dtype": "int8"}, "compile.options.lm_head_dtype"),
    ],
)
def test_what_cuda_lacks_is_refused(
    scheme: QuantScheme, options: dict[str, Any], path: str
) -> None:
    """Before anything is downloaded, with what would be built instead."""
    ours = recipe(target="cuda", options=options)
    (problem,) = PROVIDER.check(ours, facts(), scheme)

    assert problem.path == path
    assert problem.unsupported
    assert problem.hint

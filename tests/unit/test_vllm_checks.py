"""What a plan refuses for vLLM, and the value it says to write."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from formats import scheme
from lmi_build.backends.vllm.backend import PROVIDER
from lmi_build.backends.vllm.documents import config_problem, served_config
from lmi_build.backends.vllm.kernels import (
    Sizes,
    candidates,
    kernels,
    misfit,
    version_key,
)
from lmi_build.backends.vllm.linears import device_sizes
from lmi_build.backends.vllm.notes import folder_notes
from lmi_build.backends.vllm.target import find_target
from lmi_build.catalog.images import image_uri, regions
from lmi_build.catalog.vllm_releases import (
    newest_vllm,
    vllm_handlers,
    vllm_releases,
)
from lmi_build.values.bounds import Bounds
from lmi_build.values.recipe import QuantSpec
from vllm_recipes import model, problems, properties, scheme_of, vllm_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

LONG = Bounds(max_input_len=6000, max_output_len=1000, max_batch_size=8)


def test_releases_are_whole() -> None:
    """Tags are those of the version, newest first, and can be had in a region."""
    rows = list(vllm_releases().values())
    assert [version_key(row.lmi) for row in rows] == sorted(
        (version_key(row.lmi) for row in rows), reverse=True
    )
    for row in rows:
        assert row.tag.startswith(row.lmi)
        assert row.image_version in row.tag
        assert row.source
        assert "us-east-1" in regions(row.tag)
        assert image_uri(row.tag, "us-east-1").endswith(row.tag)
        for name in row.handlers:
            handler = vllm_handlers()[name]
            version = row.computes_with(handler)
            assert bool(version) == (handler.library == "vllm")
    assert newest_vllm() is rows[0]
    lmi = [row for row in rows if row.container == "djl-lmi"]
    for newer, older in pairwise(lmi):
        assert version_key(newer.vllm) >= version_key(older.vllm)


def test_every_handler_is_used() -> None:
    """No row of a handler stands for nothing."""
    used = {name for row in vllm_releases().values() for name in row.handlers}
    assert used == set(vllm_handlers())


def test_fallbacks_are_rows() -> None:
    """What a kernel falls back to exists, is no cycle, and asks for less."""
    for row in kernels().values():
        for name in row.fallback:
            other = kernels()[name]
            assert not other.fallback
            assert other.outputs <= row.outputs


@pytest.mark.parametrize(
    "release", ["djl-lmi-0.28.0", "djl-lmi-0.29.0", "djl-lmi-0.30.0", "djl-lmi-0.32.0"]
)
def test_t5_is_for_lmi_dist_in_float(release: str) -> None:
    """LMI-Dist has it beside vLLM's models; vLLM of the same image does not."""
    t5 = model("flan-t5-xl")
    bounds = Bounds(max_input_len=256, max_output_len=64)
    place: dict[str, Any] = {"release": release, "bounds": bounds}
    own = vllm_recipe(scheduler="lmi-dist", **place)
    other = vllm_recipe(scheduler="vllm", **place)
    scheme = scheme_of(vllm_recipe("gptq", **place), model())

    assert problems(own, t5) == []
    endless = replace(t5.geometry, max_position_embeddings=0)
    assert problems(own, replace(t5, geometry=endless)) == []
    (fault,) = problems(other, t5)
    assert fault.code == "vllm.architecture"
    assert f"`rolling_batch: lmi-dist` and `release: {release}`" in fault.hint
    (fault,) = PROVIDER.check(own, t5, scheme)
    assert fault.code == "vllm.format"
    assert "method: none" in fault.hint


def test_t5_on_a_newer_image_is_sent_to_the_last_with_lmi_dist() -> None:
    """The newest image has no LMI-Dist; the hint names one that has."""
    (fault,) = problems(vllm_recipe(), model("flan-t5-xl"))

    assert fault.code == "vllm.architecture"
    assert "`release: djl-lmi-0.32.0`" in fault.hint


@pytest.mark.parametrize(
    ("changes", "code", "hint"),
    [
        ({"pp": 2}, "vllm.pipeline", "pipeline_parallel_size: 1"),
        ({"tp": 3}, "vllm.heads", "tensor_parallel_size: 2"),
        ({"release": "djl-lmi-0.36"}, "compile.unknown-release", "djl-lmi-0.36.0"),
        ({"target": "ml.g5.2xlarg"}, "compile.unknown-target", "ml.g5.2xlarge"),
        ({"target": "ml.inf2.8xlarge"}, "compile.unsupported", "ml.g5.2xlarge"),
        ({"target": "ml.g5.2xlarge", "tp": 2}, "compile.few-devices", "over 1"),
        ({"scheduler": "lmi-dist"}, "vllm.no-scheduler", "djl-lmi-0.32.0"),
        ({"scheduler": "deepspeed"}, "vllm.no-scheduler", "djl-deepspeed-0.27.0"),
        ({"options": {"dtyp": "float16"}}, "compile.unknown-option", "dtype"),
        ({"options": {"dtype": "half"}}, "compile.bad-option", "dtype: float16"),
        ({"serve": {"gpu_memory_utilization": 1.5}}, "serve.bad-option", "0.9"),
        (
            {"release": "djl-lmi-0.28.0", "serve": {"enable_prefix_caching": True}},
            "vllm.option-ignored",
            "remove the line",
        ),
        (
            {"release": "djl-lmi-0.35.0", "serve": {"enable_chunked_prefill": False}},
            "vllm.option-ignored",
            "djl-lmi-0.36.0",
        ),
        (
            {"bounds": replace(LONG, max_beam_width=4)},
            "vllm.bounds",
            "max_beam_width: 1",
        ),
        (
            {"bounds": replace(LONG, max_num_tokens=4)},
            "vllm.bounds",
            "raise it to 8",
        ),
        (
            {
                "release": "djl-lmi-0.32.0",
                "scheduler": "vllm",
                "bounds": replace(LONG, max_num_tokens=2048),
            },
            "vllm.bounds",
            "raise it to 7000",
        ),
        (
            {"method": "smoothquant", "scheduler": "disable"},
            "vllm.format",
            "rolling_batch: auto",
        ),
        (
            {"method": "gptq", "release": "djl-lmi-0.28.0", "scheduler": "vllm"},
            "vllm.dtype",
            "dtype: float16",
        ),
        (
            {"bounds": replace(LONG, max_batch_size=4000)},
            "vllm.memory",
            "--largest batch",
        ),
    ],
)
def test_refusals_say_what_to_write(
    changes: dict[str, Any], code: str, hint: str
) -> None:
    """Each with its code, and the value in the hint."""
    found = problems(vllm_recipe(**changes))

    assert code in {problem.code for problem in found}
    assert any(hint in p.hint for p in found if p.code == code), found


def test_packed_tokens_may_be_fewer_where_prompts_are_cut() -> None:
    """From vLLM 0.8 on a prompt is computed in parts, unless that is turned off."""
    few = replace(LONG, max_num_tokens=2048)

    assert problems(vllm_recipe(bounds=few)) == []
    off = {"enable_chunked_prefill": False}
    assert [p.code for p in problems(vllm_recipe(bounds=few, serve=off))] == [
        "vllm.bounds"
    ]


def test_eight_bit_weights_alone_need_a_packed_layout() -> None:
    """compressed-tensors' plain layout is read with 8-bit activations alone."""
    recipe = vllm_recipe("int8")
    plain = scheme("int-quantized")

    assert problems(recipe) == []
    found = list(PROVIDER.check(recipe, model(), plain))
    assert [(p.code, p.hint[:21]) for p in found] == [
        ("vllm.format", "write `format: gptq`,")
    ]


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        ("gptq", {}, ["scales of `gptq` weights"]),
        ("gptq", {"dtype": "float16"}, ["the model is bfloat16"]),
        ("smoothquant", {}, []),
        ("none", {}, []),
    ],
)
def test_notes_say_what_changes(
    method: str, options: dict[str, str], told: list[str]
) -> None:
    """A plan warns where vLLM rounds once more, and only there."""
    recipe = vllm_recipe(method, options=dict(options))
    of = model()
    found = folder_notes(recipe, of, scheme_of(recipe, of), find_target(recipe))

    warnings = [note.message for note in found if note.level == "warning"]
    assert len(warnings) == len(told)
    assert all(
        text.startswith(start) for text, start in zip(warnings, told, strict=True)
    )


def test_sizes_decide_the_kernel() -> None:
    """Marlin takes 128 inputs at a time; SmolLM2 is 576 wide."""
    small = model("smollm2-135m")
    spec = QuantSpec(method="gptq", bits=4, group_size=64)

    def codes(release: str, **options: str) -> list[tuple[str, str]]:
        recipe = vllm_recipe(
            release=release, target="ml.g5.xlarge", options=dict(options)
        )
        found = problems(replace(recipe, quantize=spec), small)
        return [(p.code, p.hint) for p in found]

    # Triton's kernel takes it in 0.23; before, exllama does, in float16 alone.
    assert codes("djl-lmi-0.36.0") == []
    assert codes("djl-lmi-0.34.0") == [("vllm.sizes", "write `dtype: float16`")]
    assert codes("djl-lmi-0.34.0", dtype="float16") == []
    # Whole rows have no groups that could be smaller.
    spec = QuantSpec(method="int8")
    hint = "use a newer release, or `method: none`"
    assert codes("djl-lmi-0.36.0") == [("vllm.sizes", hint)]


def test_a_cut_group_is_refused() -> None:
    """A group of channels lies on one device."""
    form = scheme("gptq", group_size=128)
    row = kernels()["gptq-marlin-23"]
    whole = Sizes(name="x.down_proj", num_outputs=256, num_inputs=256)
    cut = replace(whole, num_inputs=192)

    assert misfit(row, form, [whole], vllm="0.23.1", dtype="bfloat16") is None
    assert misfit(row, form, [whole, cut], vllm="0.23.1", dtype="float16") is cut


def test_joined_linears_are_asked_about_once() -> None:
    """q, k and v together; a device never has less than a head of keys."""
    geometry = model().geometry
    linears = {
        f"m.{name}": sizes
        for name, sizes in {
            "q_proj": (4096, 4096),
            "k_proj": (1024, 4096),
            "v_proj": (1024, 4096),
            "o_proj": (4096, 4096),
        }.items()
    }

    found = {x.name: x for x in device_sizes(linears, geometry, 16)}

    assert set(found) == {"m.q_proj", "m.o_proj"}
    assert found["m.q_proj"].num_outputs == 256 + 2 * geometry.head_dim
    assert found["m.o_proj"].num_inputs == 256


@pytest.mark.parametrize(
    ("capability", "names"),
    [("7.5", ["fp8-marlin-23"]), ("8.6", ["fp8-marlin-23"]), ("8.9", ["fp8-cutlass"])],
)
def test_fp8_falls_back_to_float_activations(capability: str, names: list[str]) -> None:
    """A GPU without FP8 products keeps the weights and computes in float."""
    form = scheme(
        "float-quantized",
        granularity="tensor",
        activation_bits=8,
        activation_dtype="float",
        activation_scheme="static",
    )
    found = [n for n, _ in candidates(form, vllm="0.23.1", capability=capability)]
    assert found[:1] == names


def test_the_share_of_the_gpu_grows_with_what_is_asked() -> None:
    """VLLM's own 0.9 where that does; more where the bounds need it."""
    key = "option.gpu_memory_utilization"
    small = properties(vllm_recipe())[key]
    given = properties(vllm_recipe(serve={"gpu_memory_utilization": 0.7}))[key]

    assert (small, given) == ("0.9", "0.7")


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"dtype": "bfloat16"}, {"dtype": "bfloat16", "torch_dtype": "bfloat16"}),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            {"rope_theta": 5e5},
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn", "factor": 4}},
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "yarn", "factor": 4}},
        ),
        ({"rope_theta": 1e4, "torch_dtype": "float16"}, {"rope_theta": 1e4}),
    ],
)
def test_older_transformers_get_the_older_names(
    config: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Nothing is taken away, and a newer image gets the document as it is."""
    found = served_config(config, older=True)

    assert found.items() >= {**config, **wanted}.items()
    assert served_config(config, older=False) == config
    assert served_config(found, older=True) == found


def test_words_that_older_transformers_lack_are_refused() -> None:
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {}}

    problem = config_problem({"rope_parameters": rope}, transformers="4.57.1")

    assert problem is not None
    assert problem.code == "vllm.config"
    assert config_problem({"rope_parameters": rope}, transformers="5.9.0") is None

"""
The law that folders for vLLM stand on: three places carry the same bounds.

What the plan lowers, what `serving.properties` says when the front end reads it, and
what the manifest promises are written apart from each other; for any recipe without
problems they agree, and what SageMaker is told names the image of that release.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lmi_build.artifacts import deployment_requests
from lmi_build.backends.java_properties import java_properties
from lmi_build.backends.vllm.backend import PROVIDER
from lmi_build.backends.vllm.bounds import lower_bounds
from lmi_build.backends.vllm.target import find_target
from lmi_build.catalog.vllm_releases import vllm_handlers, vllm_releases
from lmi_build.package.properties import render_properties
from lmi_build.package.worker import make_manifest
from lmi_build.values.bounds import Bounds
from packed import HOST, sample_params
from vllm_recipes import METHODS, model, problems, scheme_of, vllm_recipe

NAMES = sorted(vllm_releases())


@st.composite
def recipes(draw: st.DrawFn) -> Any:
    """A recipe of any release, handler and quantization, within the model's bounds."""
    name = draw(st.sampled_from(NAMES))
    handler = vllm_handlers()[draw(st.sampled_from(vllm_releases()[name].handlers))]
    return vllm_recipe(
        draw(st.sampled_from(sorted(METHODS))),
        release=name,
        scheduler=handler.scheduler,
        target=draw(st.sampled_from(["ml.g6.12xlarge", "ml.p4d.24xlarge"])),
        tp=draw(st.sampled_from([1, 2, 4])),
        bounds=Bounds(
            max_input_len=draw(st.integers(1, 8192)),
            max_output_len=draw(st.integers(1, 4096)),
            max_batch_size=draw(st.integers(1, 300)),
            max_num_tokens=draw(st.none() | st.integers(1, 32768)),
        ),
        options=draw(st.sampled_from([{}, {"dtype": "float16"}])),
        serve=draw(st.sampled_from([{}, {"gpu_memory_utilization": 0.8}])),
    )


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(recipe=recipes())
def test_three_places_say_the_same(recipe: Any) -> None:
    """Bounds, ranks and the image, through the written file and the manifest."""
    of = model()
    assume(not problems(recipe, of))
    target, scheme = find_target(recipe), scheme_of(recipe, of)
    serving = PROVIDER.serving(recipe, of, scheme, HOST, {})
    lowered = lower_bounds(recipe.bounds, target)
    read = java_properties(render_properties(serving.properties))

    params = sample_params(recipe=recipe, facts=of, serving=serving)
    manifest = make_manifest(params, [], ledger=None)
    wanted = {
        "max_seq_len": lowered.max_seq_len,
        "max_batch_size": lowered.max_batch_size,
        "max_num_tokens": lowered.max_num_tokens,
        "tensor_parallel_size": recipe.compile.tensor_parallel_size,
    }
    handler = target.handler
    for name, value in wanted.items():
        if name in handler.keys:
            assert read[f"option.{handler.keys[name]}"] == str(value)
        if name in handler.server_keys:
            assert read[handler.server_keys[name]] == str(value)
        if name in manifest.bounds:
            assert manifest.bounds[name] == value
    assert "option.quantize" not in read
    written = manifest.serving["properties"]
    assert isinstance(written, dict)
    assert written.items() >= read.items()
    ranks = recipe.compile.tensor_parallel_size * recipe.compile.pipeline_parallel_size
    assert manifest.compatibility["num_ranks"] == ranks
    assert lowered.max_num_tokens >= (handler.fixed_num_seqs or 1)

    document = json.loads(manifest.to_bytes())
    bodies = deployment_requests(document, "s3://b/p/", region="us-east-1")
    image = bodies["CreateModel"]["PrimaryContainer"]["Image"]
    assert image.endswith(f"djl-inference:{target.release.tag}")
    variant = bodies["CreateEndpointConfig"]["ProductionVariants"][0]
    assert variant["InstanceType"] == recipe.compile.target

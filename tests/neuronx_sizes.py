"""Random decoders and layouts for the laws of the NeuronX backend."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from llama_8b import LLAMA_8B
from lmi_build.backends.neuronx.heads import MODES, HeadTerms
from lmi_build.backends.neuronx.tnx_request import TnxRequest
from lmi_build.catalog.instances import instances
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.values.bounds import Bounds
from lmi_build.values.model import ModelGeometry

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn

ROWS = ("0.10", "0.11", "0.12", "0.13")
GROUPED = ("llama", "mistral", "mixtral")
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "opt": "OPTForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "bloom": "BloomForCausalLM",
}


@st.composite
def geometries(draw: DrawFn, model_type: str | None = None) -> ModelGeometry:
    """A decoder of one model type, with heads that group evenly."""
    name = model_type or draw(st.sampled_from(sorted(ARCHITECTURES)))
    kv_heads = draw(st.integers(1, 32))
    group = draw(st.sampled_from([1, 1, 2, 3, 4, 5, 7, 8])) if name in GROUPED else 1
    head_dim = draw(st.sampled_from([32, 64, 80, 128]))
    return ModelGeometry(
        architecture=ARCHITECTURES[name],
        model_type=name,
        num_layers=draw(st.integers(1, 80)),
        hidden_size=kv_heads * group * head_dim,
        intermediate_size=draw(st.integers(64, 20_000)),
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=draw(st.integers(100, 200_000)),
        max_position_embeddings=131_072,
        tie_word_embeddings=False,
    )


@st.composite
def head_terms_of(draw: DrawFn) -> HeadTerms:
    """Heads, cores and a wish, which may be none that can be had."""
    kv_heads = draw(st.integers(1, 40))
    group = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 16]))
    return HeadTerms(
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([16, 64, 80, 96, 128])),
        tensor_parallel_size=draw(
            st.sampled_from([1, 2, 4, 6, 8, 10, 12, 16, 24, 32, 64])
        ),
        row=draw(st.sampled_from(ROWS)),
        requested=draw(st.sampled_from([None, *MODES])),
        batch_size=draw(st.integers(1, 64)),
        continuous=draw(st.booleans()),
        has_context=draw(st.booleans()),
    )


def llama(**changes: Any) -> TnxRequest:
    """Llama 3.1 8B over 8 cores of ml.inf2.24xlarge, for a release that is served."""
    request = TnxRequest(
        bounds=Bounds(max_input_len=1024, max_output_len=512, max_batch_size=8),
        geometry=replace(LLAMA_8B, **changes.pop("geometry", {})),
        config={"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}},
        release=neuron_releases()["djl-neuronx-0.30.0"],
        instance=instances()["ml.inf2.24xlarge"],
        tensor_parallel_size=8,
        dtype="bfloat16",
    )
    return replace(request, **changes)

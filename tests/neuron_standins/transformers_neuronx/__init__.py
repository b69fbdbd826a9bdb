"""Stand-in of transformers-neuronx 0.12 and 0.13; see the folder's README."""

import os

__version__ = os.environ.get("STANDIN_TNX", "0.13.380")

from .models import (  # noqa: E402 - they read the version
    BloomForSampling,
    GPT2ForSamplingWithContextBroadcasting,
    GPTJForSampling,
    GPTNeoXForSampling,
    LlamaForSampling,
    MistralForSampling,
    MixtralForSampling,
    OPTForSampling,
)
from .modeling_auto import NeuronAutoModelForCausalLM  # noqa: E402

__all__ = [
    "BloomForSampling",
    "GPT2ForSamplingWithContextBroadcasting",
    "GPTJForSampling",
    "GPTNeoXForSampling",
    "LlamaForSampling",
    "MistralForSampling",
    "MixtralForSampling",
    "NeuronAutoModelForCausalLM",
    "OPTForSampling",
]

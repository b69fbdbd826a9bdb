"""Stands in for models/mixtral/modeling_mixtral.py of NxD Inference 0.1.1."""

from __future__ import annotations

from neuronx_distributed_inference.models.application_base import NeuronApplicationBase
from neuronx_distributed_inference.models.config import MoEInferenceConfig


class NeuronMixtralForCausalLM(NeuronApplicationBase):
    """Mixtral."""

    config_class = MoEInferenceConfig

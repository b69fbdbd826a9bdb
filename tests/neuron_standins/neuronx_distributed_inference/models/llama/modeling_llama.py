"""Stands in for models/llama/modeling_llama.py of NxD Inference 0.1.1."""

from __future__ import annotations

from neuronx_distributed_inference.models.application_base import NeuronApplicationBase


class NeuronLlamaForCausalLM(NeuronApplicationBase):
    """Llama."""

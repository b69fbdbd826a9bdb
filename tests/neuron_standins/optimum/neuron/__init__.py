"""
Stands in for optimum-neuron: its signatures, files and refusals, without a compiler.

`STANDIN_OPTIMUM_NEURON` says the version, `STANDIN_NEURON_CORES` how many cores there
are.
"""

from __future__ import annotations

from optimum.neuron.version import NEWER

if NEWER:
    from optimum.neuron.newer import NeuronModelForCausalLM
else:
    from optimum.neuron.older import NeuronModelForCausalLM

__all__ = ["NeuronModelForCausalLM"]

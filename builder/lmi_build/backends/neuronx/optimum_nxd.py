"""A recipe's call of optimum-neuron from 0.4 on, over NeuronX Distributed."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.calls import Made, NeuronCall
from lmi_build.backends.neuronx.nxd_models import nxd_setup
from lmi_build.backends.neuronx.nxd_request import CACHE_OFF, PLATFORMS, TORCH_DTYPES

if TYPE_CHECKING:
    from typing import Any

    from lmi_build.backends.neuronx.nxd_models import NxdSetup
    from lmi_build.backends.neuronx.nxd_request import NxdRequest

MODEL_CLASS = "optimum.neuron.NeuronModelForCausalLM"
_CONFIG = "optimum.neuron.models.inference.backend.config.NxDNeuronConfig"
# One graph for prompts, one for tokens: `create_graph_builders` of
# modules/decoder/modeling_decoder.py, 0.4.
_NXD_GRAPHS = 2
# `get_compiler_args` of the same file.
_NXD_FLAGS = (
    "--auto-cast=none --model-type=transformer"
    " --tensorizer-options='--enable-ccop-compute-overlap"
    " --cc-pipeline-tiling-factor=2 --vectorize-strided-dma ' -O2"
)


def lower_nxd(request: NxdRequest) -> NeuronCall:
    """
    The call that exports a model.

    Args:
        request: What is compiled.

    Raises:
        KeyError: The model type has no row.
    """
    setup = nxd_setup(request.model_type)
    if setup is None:
        raise KeyError(request.model_type)
    platform = PLATFORMS[request.family]
    arguments = nxd_arguments(request, setup)
    return NeuronCall(
        loader="optimum",
        model_class=MODEL_CLASS,
        arguments={
            "neuron_config": Made(factory=_CONFIG, arguments=arguments),
            "load_weights": False,
        },
        steps=(("save_pretrained", {"save_directory": {"path": "."}}),),
        environment={**CACHE_OFF, "NEURON_PLATFORM_TARGET_OVERRIDE": platform},
        flags=tuple(shlex.split(_nxd_flags(setup, platform))),
        num_graphs=_NXD_GRAPHS,
        num_neffs=0,
        files=nxd_files(request.tensor_parallel_size),
        target=platform,
    )


def nxd_arguments(request: NxdRequest, setup: NxdSetup) -> dict[str, Any]:
    """
    Keyword arguments of `NxDNeuronConfig`, those of the recipe last.

    Args:
        request: What is compiled.
        setup: How the model type is set up.

    `max_context_length` stays what it is of itself, the whole sequence: the mask of a
    prompt is made as long as that, and a shorter graph does not compile.

    Source: `_get_neuron_config` of neuron/models/inference/*/modeling_*.py at 0.4;
    `NxDDecoderModelForCausalLM.forward` in backend/modules/decoder/modeling_decoder.py
    and `scaled_qk` in modules/attention/attention_base.py for the mask.
    """
    batch, cores = request.bounds.max_batch_size, request.tensor_parallel_size
    continuous = setup.continuous and batch > 1
    sampling = setup.on_device_sampling
    if continuous and cores == setup.host_sampling_size:
        sampling = False
    return {
        "batch_size": batch,
        "sequence_length": request.bounds.max_seq_len,
        "tp_degree": cores,
        "torch_dtype": TORCH_DTYPES[request.amp],
        "target": PLATFORMS[request.family],
        "on_device_sampling": sampling,
        "fused_qkv": setup.fused_qkv,
        "continuous_batching": continuous,
        **request.options,
    }


def _nxd_flags(setup: NxdSetup, platform: str) -> str:
    cores = 2 if platform == "trn2" else 1
    return setup.flags or f"{_NXD_FLAGS} --lnc={cores} --target {platform}"


def nxd_files(num_ranks: int) -> tuple[str, ...]:
    """
    What an exported folder holds at least, sorted.

    Args:
        num_ranks: Cores that share each layer.

    Source: `NxDPreTrainedModel.save` in backend/pretrained_model.py, 0.4.
    """
    weights = "checkpoint/weights/tp{}_sharded_checkpoint.safetensors"
    shards = (weights.format(rank) for rank in range(num_ranks))
    return tuple(sorted(("config.json", "neuron_config.json", "model.pt", *shards)))

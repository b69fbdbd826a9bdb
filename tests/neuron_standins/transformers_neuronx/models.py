"""
Model classes with the real signatures.

Llama, Mistral and Mixtral drop leftover arguments; the others hand them to
`maybe_override_attributes`, which knows the configuration's names only.
"""

from .base import NeuronModelBase, PretrainedModel
from .config import NeuronConfig


def maybe_override_attributes(config, kwargs):
    for name, value in kwargs.items():
        if not hasattr(config, name):
            raise KeyError(f"Found invalid key {name}.")
        if value is not None:
            setattr(config, name, value)


def _given(values):
    return {k: v for k, v in values.items() if k not in _OWN}


_OWN = ("self", "config", "kwargs", "__class__")


class LlamaForSampling(NeuronModelBase):
    def __init__(
        self,
        config,
        *,
        n_positions=2048,
        batch_size=1,
        amp="f32",
        tp_degree=2,
        context_length_estimate=None,
        context_unroll=None,
        unroll=None,
        neuron_config=None,
        prefixed_length=0,
        **kwargs,
    ):
        self.setup_graphs(config, _given(locals()))
        checked = self.neuron_config
        if checked.sequence_parallel_norm:
            for size in self.context_buckets:
                above = size > checked.sequence_parallel_norm_threshold
                if above and size % tp_degree:
                    raise ValueError(
                        "Sequence parallel normalization requires the bucket size"
                        f" ({size}) to be divisible by the tensor parallel degree"
                        f" ({tp_degree})"
                    )


class MistralForSampling(NeuronModelBase):
    def __init__(
        self,
        config,
        *,
        n_positions=2048,
        batch_size=1,
        amp="f32",
        tp_degree=2,
        context_length_estimate=None,
        context_unroll=None,
        unroll=None,
        neuron_config=NeuronConfig(),
        **kwargs,
    ):
        self.setup_graphs(config, _given(locals()))


class MixtralForSampling(MistralForSampling):
    pass


class BloomForSampling(NeuronModelBase):
    def __init__(
        self,
        config,
        *,
        n_positions=2048,
        batch_size=1,
        amp="f32",
        tp_degree=2,
        context_length_estimate=None,
        context_unroll=None,
        unroll=None,
        neuron_config=None,
        **kwargs,
    ):
        maybe_override_attributes(config, kwargs)
        self.setup_graphs(config, _given(locals()))


class OPTForSampling(NeuronModelBase):
    def __init__(
        self,
        config,
        batch_size=1,
        amp=None,
        tp_degree=2,
        n_positions=2048,
        unroll=None,
        context_length_estimate=None,
        context_unroll=1,
        neuron_config=None,
        **kwargs,
    ):
        maybe_override_attributes(config, kwargs)
        self.setup_graphs(config, _given(locals()))


class GPT2ForSamplingWithContextBroadcasting(NeuronModelBase):
    def __init__(
        self,
        config,
        batch_size=1,
        prompt_batch_size=1,
        amp="f32",
        tp_degree=2,
        unroll=None,
        context_length_estimate=None,
        context_unroll=1,
        neuron_config=NeuronConfig(),
        reorder_cache=False,
        **kwargs,
    ):
        maybe_override_attributes(config, kwargs)
        positions = config.n_positions
        self.setup_graphs(config, {**_given(locals()), "n_positions": positions})
        # One prompt at a time, whose cache is then copied over the batch.
        self.context_batch_sizes = [prompt_batch_size]
        if self.batch_sizes != [prompt_batch_size]:
            self.context_parts.append("broadcast")


class GPTJForSampling(PretrainedModel):
    def __init__(
        self,
        config,
        batch_size=1,
        amp="f32",
        tp_degree=2,
        unroll=None,
        init_n_active_tokens=None,
        neuron_config=None,
        **kwargs,
    ):
        maybe_override_attributes(config, kwargs)
        self.config = config

    def to_neuron(self):
        raise RuntimeError("The PJRT/NRT layer found no free NeuronCores (nrt_init)")


class GPTNeoXForSampling(GPTJForSampling):
    pass

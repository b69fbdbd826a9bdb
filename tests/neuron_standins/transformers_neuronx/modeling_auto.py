"""Which class a model gets."""

import json
import os

from . import models

NEURON_MODEL_FOR_CAUSAL_LM_MAPPING = {
    "bloom": models.BloomForSampling,
    "code_llama": models.LlamaForSampling,
    "gpt2": models.GPT2ForSamplingWithContextBroadcasting,
    "gpt_neox": models.GPTNeoXForSampling,
    "gptj": models.GPTJForSampling,
    "llama": models.LlamaForSampling,
    "mistral": models.MistralForSampling,
    "mixtral": models.MixtralForSampling,
    "opt": models.OPTForSampling,
}


class NeuronAutoModelForCausalLM:
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        path = os.path.join(pretrained_model_name_or_path, "config.json")
        with open(path, encoding="utf-8") as file:
            kind = json.load(file)["model_type"]
        if kind not in NEURON_MODEL_FOR_CAUSAL_LM_MAPPING:
            raise AssertionError(f"The model type '{kind}' is not supported by Neuron")
        chosen = NEURON_MODEL_FOR_CAUSAL_LM_MAPPING[kind]
        return chosen.from_pretrained(
            pretrained_model_name_or_path, *model_args, **kwargs
        )

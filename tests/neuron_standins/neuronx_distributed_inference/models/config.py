"""Stands in for models/config.py of NxD Inference 0.1.1."""

# Signatures of others.
# ruff: noqa: LOG015, FBT001, FBT002

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

CONFIG_FILE = "neuron_config.json"
_NAMES = (
    "async",
    "attn_cls",
    "attn_kernel_enabled",
    "batch_size",
    "bucket_n_active_tokens",
    "buckets",
    "cc_pipeline_tiling_factor",
    "context_encoding_buckets",
    "ctx_batch_size",
    "enable_bucketing",
    "enable_eagle_draft_input_norm",
    "enable_eagle_speculation",
    "enable_fused_speculation",
    "ep_degree",
    "flash_decoding_enabled",
    "fused_qkv",
    "is_chunked_prefill",
    "is_continuous_batching",
    "is_eagle_draft",
    "is_medusa",
    "is_paged_attention",
    "kv_cache_quant",
    "local_ranks_size",
    "logical_neuron_cores",
    "lora_config",
    "max_batch_size",
    "max_context_length",
    "max_length",
    "max_new_tokens",
    "medusa_speculation_length",
    "medusa_tree",
    "mlp_kernel_enabled",
    "mlp_kernel_fuse_residual_add",
    "n_active_tokens",
    "n_positions",
    "num_medusa_heads",
    "on_cpu",
    "on_device_sampling_config",
    "output_logits",
    "overrides_torch_dtype",
    "pa_block_size",
    "pa_num_blocks",
    "padding_side",
    "pp_degree",
    "qk_layernorm",
    "qkv_kernel_enabled",
    "quantization_dtype",
    "quantization_type",
    "quantized",
    "quantized_checkpoints_path",
    "quantized_kernel_lower_bound",
    "quantized_mlp_kernel_enabled",
    "rmsnorm_quantize_kernel_enabled",
    "rpl_reduce_dtype",
    "save_sharded_checkpoint",
    "seq_len",
    "sequence_parallel_enabled",
    "spec_batch_size",
    "speculation_length",
    "start_rank_id",
    "target",
    "tkg_batch_size",
    "token_generation_buckets",
    "torch_dtype",
    "tp_degree",
    "trace_tokengen_model",
    "vocab_parallel",
    "world_size",
)
_DTYPES = ("float32", "float16", "bfloat16")


class OnDeviceSamplingConfig:
    """How tokens are drawn on the cores."""

    def __init__(self, **kwargs: Any) -> None:
        self.do_sample = kwargs.pop("do_sample", True)
        self.top_k = kwargs.pop("top_k", 1)
        self.dynamic = kwargs.pop("dynamic", False)
        self.deterministic = kwargs.pop("deterministic", False)
        self.global_topk = kwargs.pop("global_topk", 256)


class NeuronConfig:
    """The settings of a compilation; a name that it does not know is dropped."""

    def __init__(self, **kwargs: Any) -> None:
        known = {name: kwargs.pop(name) for name in list(kwargs) if name in _NAMES}
        self.batch_size = known.pop("batch_size", 1)
        self.seq_len = known.pop("seq_len", 128)
        self.torch_dtype = known.pop("torch_dtype", "bfloat16")
        assert self.torch_dtype in _DTYPES, f"Unsupported dtype: {self.torch_dtype}"
        self.max_context_length = known.pop("max_context_length", self.seq_len)
        self.max_length = known.pop("max_length", self.seq_len)
        self.tp_degree = known.pop("tp_degree", 1)
        self.enable_bucketing = known.pop("enable_bucketing", False)
        self.save_sharded_checkpoint = known.pop("save_sharded_checkpoint", True)
        self.async_mode = known.pop("async", False)
        sampling = known.pop("on_device_sampling_config", None)
        if isinstance(sampling, dict):
            sampling = OnDeviceSamplingConfig(**sampling)
        self.on_device_sampling_config = sampling
        for name, most in (
            ("context_encoding_buckets", self.max_context_length),
            ("token_generation_buckets", self.max_length),
        ):
            buckets = known.pop(name, None)
            setattr(self, name, buckets)
            if buckets is not None:
                buckets.sort()
                assert buckets[-1] <= most, f"{name} should be <= {most}"
        self.quantized = known.pop("quantized", False)
        self.quantized_checkpoints_path = known.pop("quantized_checkpoints_path", None)
        if self.quantized is True:
            assert self.quantized_checkpoints_path is not None, "required"
        vars(self).update(known)
        if kwargs:
            logging.warning(
                "NeuronConfig init: Unexpected keyword arguments: %s", kwargs
            )


class MoENeuronConfig(NeuronConfig):
    """The same for models with experts."""

    def __init__(
        self, capacity_factor: float | None = None, glu_mlp: bool = True, **kwargs: Any
    ) -> None:
        self.capacity_factor, self.glu_mlp = capacity_factor, glu_mlp
        super().__init__(**kwargs)


class InferenceConfig:
    """A model's settings with those of its compilation."""

    def __init__(self, neuron_config: NeuronConfig, load_config: Any = None) -> None:
        self.neuron_config = neuron_config
        if load_config is not None:
            load_config(self)

    @classmethod
    def get_neuron_config_cls(cls) -> type[NeuronConfig]:
        """The class of the settings."""
        return NeuronConfig

    def save(self, model_path: str) -> None:
        """Write `neuron_config.json`."""
        text = json.dumps(_plain(self), indent=2, sort_keys=True)
        Path(model_path).mkdir(parents=True, exist_ok=True)
        (Path(model_path) / CONFIG_FILE).write_text(text + "\n", "utf-8")

    @classmethod
    def load(cls, model_path: str) -> InferenceConfig:
        """Read it."""
        document = json.loads((Path(model_path) / CONFIG_FILE).read_text("utf-8"))
        made = cls(cls.get_neuron_config_cls()(**document.pop("neuron_config")))
        vars(made).update(document)
        return made


class MoEInferenceConfig(InferenceConfig):
    """The same for models with experts."""

    @classmethod
    def get_neuron_config_cls(cls) -> type[NeuronConfig]:
        """The class of the settings."""
        return MoENeuronConfig


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if hasattr(value, "__dict__"):
        return {name: _plain(inner) for name, inner in vars(value).items()}
    return value

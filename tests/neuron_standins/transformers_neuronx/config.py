"""Configuration classes with the signatures and refusals of the real ones."""

import enum
import os
import warnings

NEW = not os.environ.get("STANDIN_TNX", "0.13.380").startswith("0.12")
DTYPES = ("float32", "float16", "bfloat16")


class GQA(enum.Enum):
    SHARD_OVER_HEADS = "shard-over-heads"
    SHARD_OVER_BATCH = "shard-over-batch"
    REPLICATED_HEADS = "replicated-heads"
    ALL_GATHER_HEADS = "all-gather-heads"


class QuantizationConfig:
    def __init__(
        self,
        quant_dtype="s8",
        dequant_dtype="f16",
        quantize_method="vector_dynamic",
        quantize_attn=True,
        no_quantize_list=[],
    ):
        if quant_dtype not in ("s8", "f8e4m3fn"):
            raise NotImplementedError(f"{quant_dtype} is not implemented.")
        if quantize_method not in ("vector_dynamic", "direct_cast"):
            raise NotImplementedError(f"{quantize_method} is not implemented.")
        self.quant_dtype = quant_dtype
        self.dequant_dtype = dequant_dtype
        self.quantize_method = quantize_method
        self.quantize_attn = quantize_attn
        self.no_quantize_list = no_quantize_list


class KVCacheQuantizationConfig:
    def __init__(
        self, quant_dtype="s8", dequant_dtype="bf16", quantize_method="direct_cast"
    ):
        if quant_dtype not in ("s8", "f16", "bf16", "f8e4m3fn"):
            raise NotImplementedError(f"{quant_dtype} is not implemented.")
        if quantize_method != "direct_cast":
            raise NotImplementedError(f"{quantize_method} is not implemented.")
        self.quant_dtype = quant_dtype
        self.dequant_dtype = dequant_dtype
        self.quantize_method = quantize_method


class ContinuousBatchingConfig:
    def __init__(self, **kwargs):
        number = kwargs.pop("max_num_seqs", None)
        if number is None:
            number = kwargs.pop("batch_size_for_shared_caches")
        self.max_num_seqs = number
        self.max_model_len = kwargs.pop("max_model_len", None)
        self.optimized_paged_attention = bool(
            kwargs.pop("optimized_paged_attention", None)
        )
        if NEW:
            self.enable_chunked_prefill = bool(
                kwargs.pop("enable_chunked_prefill", None)
            )
            if self.enable_chunked_prefill:
                assert self.optimized_paged_attention, "chunked prefill needs paging"
        self.block_size = None
        self.num_blocks = None
        assert len(kwargs) == 0, f"unexpected key word arguments: {kwargs.keys()}"


class GenerationConfig:
    def __init__(
        self,
        *,
        max_length=None,
        do_sample=False,
        top_k=50,
        top_p=1.0,
        top_p_min_tokens=1,
        global_top_k=None,
        eos_token_id=None,
        temperature=1.0,
        dynamic=False,
        deterministic=False,
        per_batch_line=False,
    ):
        self.__dict__.update(
            {name: value for name, value in locals().items() if name != "self"}
        )


class NeuronConfig:
    def __init__(
        self,
        *,
        sparse_attn=None,
        quant=None,
        kv_cache_quant=None,
        continuous_batching=None,
        attention_layout="HSB",
        collectives_layout="HSB",
        cache_layout="SBH",
        padding_side="left",
        group_query_attention=None,
        sequence_parallel_norm=False,
        sequence_parallel_norm_threshold=2048,
        on_device_embedding=False,
        on_device_generation=None,
        all_reduce_dtype=None,
        cast_logits_dtype="float32",
        fuse_qkv=False,
        qkv_tiling=False,
        weight_tiling=False,
        mlp_in_weight_tiling_permute_order=[1, 2, 0, 3],
        mlp_out_weight_tiling_permute_order=[1, 2, 0, 3],
        log_softmax_scores=False,
        shard_over_sequence=False,
        output_all_logits=False,
        attn_output_transposed=False,
        fused_rmsnorm_qkv=False,
        mlp_out_weight_transpose=False,
        fuse_mlp=False,
        **kwargs,
    ):
        own = {
            name: value
            for name, value in locals().items()
            if name not in ("self", "kwargs")
        }
        self.__dict__.update(own)
        assert cast_logits_dtype in DTYPES
        assert padding_side in ("left", "right")
        assert sequence_parallel_norm_threshold > 0
        if group_query_attention is not None:
            self.group_query_attention = GQA(group_query_attention)
        if continuous_batching:
            self.padding_side = "right"
        if qkv_tiling is True:
            assert fuse_qkv is True, "QKV tiling needs QKV fusion"
        for old in ("use_2d_cache_ids", "lhs_aligned"):
            if old in kwargs:
                warnings.warn(f"`{old}` is deprecated", stacklevel=2)
                kwargs.pop(old)
        if NEW:
            for name, value in NEWER.items():
                setattr(self, name, kwargs.pop(name, value))
        assert len(kwargs) == 0, f"Unexpected NeuronConfig arguments: {list(kwargs)}"

    if NEW:

        def to_json(self):
            return {
                name: getattr(value, "value", getattr(value, "__dict__", value))
                for name, value in vars(self).items()
            }


# What 0.13 takes beside 0.12's.
NEWER = {
    "fused_rmsnorm_mlp": False,
    "is_eagle_target": False,
    "is_eagle_draft": False,
    "has_pre_attention_norm": True,
    "compilation_worker_count": None,
    "duplicate_q_weight_sos": False,
}

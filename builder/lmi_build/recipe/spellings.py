"""
Words of other tools, and words put into the wrong section.

Data only: what people write from habit, and the path that we give the same thing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Other tools' key -> our dotted path. AutoGPTQ, AutoAWQ, llm-compressor, optimum,
# vLLM, TensorRT-LLM, transformers-neuronx, LMI's serving.properties, Hugging Face.
RENAMED: Mapping[str, str] = {
    "w_bit": "quantize.bits",
    "wbits": "quantize.bits",
    "nbits": "quantize.bits",
    "num_bits": "quantize.bits",
    "q_group_size": "quantize.group_size",
    "groupsize": "quantize.group_size",
    "damp": "quantize.damp_percent",
    "percdamp": "quantize.damp_percent",
    "dampening_frac": "quantize.damp_percent",
    "act_order": "quantize.desc_act",
    "actorder": "quantize.desc_act",
    "symmetric": "quantize.sym",
    "zero_point": "quantize.sym",
    "alpha": "quantize.smoothing_strength",
    "modules_to_not_convert": "quantize.ignore",
    "modules_to_skip": "quantize.ignore",
    "exclude_modules": "quantize.ignore",
    "quant_method": "quantize.method",
    "quant_algo": "quantize.method",
    "quantization": "quantize",
    "quant": "quantize",
    "nsamples": "quantize.calibration.num_samples",
    "n_samples": "quantize.calibration.num_samples",
    "num_calibration_samples": "quantize.calibration.num_samples",
    "seqlen": "quantize.calibration.max_seq_len",
    "max_sequence_length": "quantize.calibration.max_seq_len",
    "calib_dataset": "quantize.calibration.dataset",
    "calib_data": "quantize.calibration.dataset",
    "max_new_tokens": "bounds.max_output_len",
    "max_output_length": "bounds.max_output_len",
    "max_prompt_len": "bounds.max_input_len",
    "max_input_length": "bounds.max_input_len",
    "max_context_length": "bounds.max_input_len",
    "context_length_estimate": "bounds.max_input_len",
    "batch_size": "bounds.max_batch_size",
    "max_rolling_batch_size": "bounds.max_batch_size",
    "max_num_seqs": "bounds.max_batch_size",
    "max_num_batched_tokens": "bounds.max_num_tokens",
    "num_beams": "bounds.max_beam_width",
    "beam_width": "bounds.max_beam_width",
    "size": "bounds",
    "tp": "compile.tensor_parallel_size",
    "tp_size": "compile.tensor_parallel_size",
    "tp_degree": "compile.tensor_parallel_size",
    "tensor_parallel": "compile.tensor_parallel_size",
    "tensor_parallel_degree": "compile.tensor_parallel_size",
    "pp_size": "compile.pipeline_parallel_size",
    "pipeline_parallel_degree": "compile.pipeline_parallel_size",
    "instance_type": "compile.target",
    "device": "compile.target",
    "engine": "compile.backend",
    "model_id": "model.source",
    "model_name": "model.source",
    "model_name_or_path": "model.source",
    "pretrained_model_name_or_path": "model.source",
    "hf_model_id": "model.source",
    "repo_id": "model.source",
    "torch_dtype": "model.dtype",
    "env": "serve.environment",
    "startup_timeout": "serve.model_loading_timeout",
    "destination": "publish.to",
    "s3_uri": "publish.to",
    "kms_key": "publish.kms_key_id",
    "kms_key_arn": "publish.kms_key_id",
    "apiVersion": "schema",
    "version": "schema",
}

# The same within one section, before those above: words of SageMaker's API and SDKs.
RENAMED_IN: Mapping[str, Mapping[str, str]] = {
    "job": {
        "instance_type": "job.instance",
        "instance_count": "job.num_hosts",
        "hosts": "job.num_hosts",
        "image_uri": "job.image",
        "role_arn": "job.role",
        "volume_size": "job.volume_size_gb",
        "volume_size_in_gb": "job.volume_size_gb",
        "volume_kms_key": "job.volume_kms_key_id",
        "output_kms_key": "job.output_kms_key_id",
        "max_runtime_in_seconds": "job.max_runtime_seconds",
        "max_run": "job.max_runtime_seconds",
        "max_wait": "job.max_wait_seconds",
        "use_spot_instances": "job.spot",
        "env": "job.environment",
        "base_job_name": "job.name_prefix",
        "enable_network_isolation": "job.network_isolation",
        "encrypt_inter_container_traffic": "job.encrypt_traffic",
    },
}

# Prompt and output together: derived, so it cannot disagree with its parts.
DERIVED = frozenset(
    [
        "max_seq_len",
        "max_model_len",
        "max_total_tokens",
        "n_positions",
        "sequence_length",
    ]
)

# Other spellings of values, by the last part of the path.
VALUES: Mapping[str, Mapping[str, str]] = {
    "dtype": {
        "fp16": "float16",
        "half": "float16",
        "f16": "float16",
        "bf16": "bfloat16",
        "fp32": "float32",
        "float": "float32",
    },
    "method": {
        "w8a8": "smoothquant",
        "w8a16": "int8",
        "w4a16": "gptq",
        "int4": "gptq",
        "off": "none",
    },
    "backend": {
        "trtllm": "tensorrt-llm",
        "trt": "tensorrt-llm",
        "ort": "onnxruntime",
        "onnx": "onnxruntime",
        "tnx": "neuronx",
        "inferentia": "neuronx",
        "aoti": "aotinductor",
        "inductor": "aotinductor",
    },
    "loader": {
        "transformers-neuronx": "tnx",
        "transformers_neuronx": "tnx",
        "optimum-neuron": "optimum",
        "nxd-inference": "nxdi",
        "neuronx-distributed-inference": "nxdi",
        "torch-neuronx": "trace",
        "torch_neuronx": "trace",
    },
    "layout": {"djl": "djl-lmi", "lmi": "djl-lmi"},
    "format": {"tar": "tar.gz", "tgz": "tar.gz", "folder": "prefix"},
    "rolling_batch": {"none": "disable", "false": "disable", "tensorrt-llm": "trtllm"},
}
YAML_1_1_BOOLEANS = {
    "yes": "true",
    "on": "true",
    "y": "true",
    "no": "false",
    "off": "false",
    "n": "false",
}

"""vLLM: folders that LMI's `djl-lmi` images load as they are."""

# Where the data files of this backend lie.
PACKAGE = "lmi_build.backends.vllm"

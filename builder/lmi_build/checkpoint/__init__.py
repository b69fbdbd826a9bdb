"""Checkpoints on disk: safetensors headers, shards and the tensor ledger."""

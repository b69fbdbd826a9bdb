"""
The formats of quantized checkpoints: what lies on disk, written and read.

`layout` says names, dtypes and shapes (light, for the planner), `codec` the bits,
`config` the `quantization_config` of each reader, `config_reader` reads anybody's,
`convert` goes from one to another.
docs/concepts/formats.md has every layout as a table.
"""

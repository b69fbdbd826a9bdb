"""Quantizers of other projects, each in a toolchain environment of its own."""

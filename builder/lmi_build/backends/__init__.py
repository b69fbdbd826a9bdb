"""Backends: each turns a checkpoint into an engine for one kind of target."""

"""Providers that make float checkpoints smaller."""

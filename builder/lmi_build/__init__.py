"""Build servable, compiled LLM artifacts for AWS LMI containers from a recipe."""

from __future__ import annotations

__version__ = "0.1.0"

"""A short model card for models that bring none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def model_card(params: Mapping[str, Any]) -> bytes:
    """Say what the artifact is and where it comes from, in Markdown."""
    model, bounds, scheme = params["model"], params["bounds"], params["scheme"]
    weights = (
        f"{scheme['weight_bits']}-bit {scheme['weight_dtype']},"
        f" {_group(scheme['group_size'])}"
        if scheme["weight_bits"] < 16  # noqa: PLR2004 - 16 and 32 are not quantized
        else f"{scheme['weight_bits']}-bit float, not quantized"
    )
    revision = f" at `{model['revision']}`" if model["revision"] else ""
    return f"""\
# {params["name"]}

A compiled artifact for DJL Serving (AWS LMI), made by lmi-build.

| | |
| --- | --- |
| model | `{model["source"]}`{revision} ({model["architecture"]}) |
| weights | {weights} |
| longest prompt | {bounds["max_input_len"]} tokens |
| longest answer | {bounds["max_output_len"]} tokens |
| requests at once | {bounds["max_batch_size"]} |

The source brought no model card. Its licence, where it has one, lies beside this
file; otherwise ask whoever published the model. `manifest.json` has every detail.
""".encode()


def _group(group_size: int) -> str:
    return "one scale a row" if group_size < 0 else f"one scale for {group_size} inputs"

"""`convert`: a quantized checkpoint in another format."""

from __future__ import annotations

import os
from pathlib import Path

import click

from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.progress import watching
from lmi_build.cli.render import data, say


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--to",
    required=True,
    type=click.Choice(["gptq", "gptq_v2", "awq", "compressed-tensors"]),
    help="Format to write.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to make.",
)
@with_common_options
@click.pass_obj
def convert(state: State, *, checkpoint: Path, to: str, out: Path) -> None:
    """
    Write a quantized checkpoint in another format, every number as it was.

    CHECKPOINT is a Hugging Face folder in a format of AutoGPTQ, AutoAWQ or
    compressed-tensors, whoever made it. What the other format could not say exactly
    is refused, and nothing is written.
    """
    from lmi_build.checkpoint.formats.convert import convert as run

    # Layers are small; threads that wait for work must not burn what others need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with watching(state) as emit:
        done = run(checkpoint, out, to=to, emit=emit)
    if state.output != "text":
        data(
            {
                "path": str(out),
                "source": done.source.to_json(),
                "target": done.target.to_json(),
                "layers": done.num_linears,
                "copied": done.num_copied,
            }
        )
        return
    say(
        state,
        f"{done.num_linears} layers from `{done.source.packing}` to"
        f" `{done.target.packing}`, bit for bit; {done.num_copied} tensors copied",
    )
    click.echo(str(out))

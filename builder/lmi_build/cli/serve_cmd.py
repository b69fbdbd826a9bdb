"""`serve`: an artifact over HTTP."""

from __future__ import annotations

from pathlib import Path

import click

from lmi_build.cli.options import State, with_common_options


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address.")
@click.option("--port", type=int, default=8080, show_default=True, help="0: any free.")
@with_common_options
@click.pass_obj
def serve(state: State, artifact: Path, host: str, port: int) -> None:
    """
    Serve an artifact with the handler it ships: /ping, /invocations, /v1/...

    ARTIFACT is a folder. Up to `max_batch_size` requests are computed side by side;
    64 prompts may wait, more get a 503. A request over the artifact's bounds gets a 4xx
    answer that names the bound.
    """
    del state
    from lmi_build.serve.server import serve as run

    run(artifact, host=host, port=port)

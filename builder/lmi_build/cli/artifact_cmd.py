"""`verify`, `publish`, `inspect` and `fetch`: what is done with a built artifact."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from lmi_build import artifacts
from lmi_build.cli.options import F, State, with_common_options
from lmi_build.cli.progress import watching
from lmi_build.cli.render import data, problem_document, say, table
from lmi_build.digest import short
from lmi_build.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.values.recipe import PublishSpec


# Where images are named when nobody says where the endpoint will be.
_REGION = "us-east-1"


class Reach(Protocol):
    """Names a place, with what the command line said about reaching it."""

    def __call__(
        self,
        uri: str,
        *,
        kms_key_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> PublishSpec:
        """The place of a URI."""


def reachable(function: F) -> F:
    """Let a command take what is needed to reach a bucket, and hand it `at(uri)`."""

    @wraps(function)
    def command(
        *args: Any,
        endpoint_url: str | None,
        region: str | None,
        expected_bucket_owner: str | None,
        **options: Any,
    ) -> Any:
        at = partial(
            artifacts.access,
            endpoint_url=endpoint_url,
            region=region,
            expected_bucket_owner=expected_bucket_owner,
        )
        return function(*args, at=at, **options)

    wrapped: Any = command
    owner = "Account that must own the bucket."
    for option in (
        click.option("--expected-bucket-owner", help=owner),
        click.option("--region", help="AWS region."),
        click.option("--endpoint-url", help="Another S3 endpoint."),
    ):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


@click.command()
@click.argument("artifact")
@click.option(
    "--release",
    metavar="NAME",
    help="Say whether this LMI release, such as 0.33 or djl-neuronx-0.30.0 (or `all`), "
    "loads the folder as it is, compiles it at start-up, or fails; nothing else is "
    "checked.",
)
@reachable
@with_common_options
@click.pass_obj
def verify(
    state: State,
    *,
    artifact: str,
    release: str | None,
    at: Reach,
) -> int:
    """
    Check that an artifact is what its manifest says: every hash, nothing more.

    ARTIFACT is a folder, `s3://bucket/prefix/name` (the latest version) or a full
    version prefix. With `--release` it may be anybody's folder, without a manifest:
    then it is held against what that container does when it starts.
    """
    spec = at(artifact)
    if release is not None:
        return _start_up(state, spec, None if release == "all" else release)
    with watching(state) as emit:
        checked = artifacts.verify_artifact(spec, state.settings(), emit=emit)
    if state.output != "text":
        data(
            {
                "ok": not checked.problems,
                "manifest_digest": checked.manifest_digest,
                "files": checked.num_files,
                "bytes": checked.num_bytes,
                "problems": [problem_document(item) for item in checked.problems],
            }
        )
        return 1 if checked.problems else 0
    checked.refuse()
    say(
        state,
        f"{artifact}: {checked.num_files} files, {format_bytes(checked.num_bytes)},"
        f" every hash as in manifest {short(checked.manifest_digest)}",
    )
    return 0


def _start_up(state: State, spec: PublishSpec, release: str | None) -> int:
    """A row for each release; 1 when one was asked for and does not load it."""
    rows = artifacts.start_up(spec, state.settings(), release=release)
    bad = release is not None and rows[0].outcome != "loads"
    if state.output != "text":
        data({"ok": not bad, "start_up": [asdict(row) for row in rows]})
        return int(bad)
    lines = [[row.release, row.outcome, row.reason] for row in rows]
    click.echo(table(["release", "at start-up", "because"], lines))
    for row in rows if release else ():
        for note in row.notes:
            say(state, f"note: {note}")
        if row.fix:
            say(state, f"hint: {row.fix}")
    return int(bad)


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("to")
@click.option("--kms-key-id", help="Key for server-side encryption.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Object tag.")
@reachable
@with_common_options
@click.pass_obj
def publish(
    state: State,
    *,
    artifact: Path,
    to: str,
    kms_key_id: str | None,
    tags: tuple[str, ...],
    at: Reach,
) -> None:
    """
    Publish a built artifact; ARTIFACT is its folder, TO a folder or s3://bucket/prefix.

    Every version has a prefix of its own; the manifest is written last, and
    `latest.json` is moved after it. Publishing again sends only what is missing.
    """
    pairs = dict(_pair(tag) for tag in tags)
    spec = at(to, kms_key_id=kms_key_id, tags=pairs)
    with watching(state) as emit:
        receipt = artifacts.publish(artifact, spec, state.settings(), emit=emit)
    if state.output == "json":
        data(asdict(receipt))
    elif state.output == "text":
        say(
            state,
            f"published {receipt.num_files} files"
            f" ({format_bytes(receipt.uploaded_bytes)} sent,"
            f" {format_bytes(receipt.skipped_bytes)} already there)"
            f" in {format_seconds(receipt.seconds)}",
        )
        click.echo(receipt.uri)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"`{text}` is not KEY=VALUE", param_hint="--tag")
    return name, value


@click.command()
@click.argument("artifact")
@click.option("--role", metavar="ARN", help="Execution role of the endpoint.")
@reachable
@with_common_options
@click.pass_obj
def inspect(
    state: State,
    *,
    artifact: str,
    role: str | None,
    at: Reach,
) -> None:
    """Show what an artifact is and how to deploy it: a folder or an S3 prefix."""
    spec = at(artifact)
    document, uri = artifacts.inspect_artifact(spec, state.settings())
    requests = artifacts.deployment_requests(
        document, uri, region=spec.region or _REGION, role=role
    )
    if requests:
        from lmi_build.jobs.api_check import refuse

        for operation, body in requests.items():
            refuse(operation, body)
    if state.output != "text":
        data({**document, "requests": requests} if requests else document)
        return
    from lmi_build.cli.inspect_text import manifest_text

    click.echo(manifest_text(document, uri, requests))


@click.command()
@click.argument("artifact")
@click.argument("dest", type=click.Path(path_type=Path, file_okay=False))
@reachable
@with_common_options
@click.pass_obj
def fetch(
    state: State,
    *,
    artifact: str,
    dest: Path,
    at: Reach,
) -> None:
    """Copy a published artifact into an empty folder, every byte checked."""
    spec = at(artifact)
    with watching(state) as emit:
        digest = artifacts.fetch_artifact(spec, dest, state.settings(), emit=emit)
    if state.output != "text":
        data({"path": str(dest), "manifest_digest": digest})
        return
    say(state, f"{dest}: manifest {short(digest)}, every hash as published")
    click.echo(str(dest))

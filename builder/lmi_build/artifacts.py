"""
What is done with a built artifact: publish it, check it, read it, fetch it, report.

```python
place = access("s3://models/smollm2")
receipt = publish(Path("artifacts/smollm2"), place, settings)
assert not verify_artifact(access(receipt.uri), settings).problems
```
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.digest import digest_file
from lmi_build.events import ignore
from lmi_build.report.artifact_pages import (
    report_page,
    write_failed_reports,
    write_page,
    write_reports,
)
from lmi_build.values.manifest import MANIFEST_NAME
from lmi_build.verify.start_up import StartUp, start_up

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.errors import Problem
    from lmi_build.events import Emit
    from lmi_build.values.publish import PublishReceipt
    from lmi_build.values.recipe import PublishSpec
    from lmi_build.values.settings import Settings

__all__ = [
    "Checked",
    "StartUp",
    "access",
    "deployment_requests",
    "fetch_artifact",
    "inspect_artifact",
    "publish",
    "report_page",
    "start_up",
    "verify_artifact",
    "write_failed_reports",
    "write_page",
    "write_reports",
]


def access(
    uri: str,
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    expected_bucket_owner: str | None = None,
    kms_key_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> PublishSpec:
    """Name a place outside a recipe, with what is needed to reach it."""
    from lmi_build.values.recipe import PublishSpec

    return PublishSpec(
        to=uri,
        endpoint_url=endpoint_url,
        region=region,
        expected_bucket_owner=expected_bucket_owner,
        kms_key_id=kms_key_id,
        tags=tags or {},
    )


def publish(
    tree: Path, destination: PublishSpec, settings: Settings, *, emit: Emit = ignore
) -> PublishReceipt:
    """
    Publish a packed artifact; safe to run again after any fault.

    Args:
        tree: The artifact's folder; `<tree>.verify.json` beside it goes along.
        destination: Where to.
        settings: Credentials.
        emit: Where events go.

    Raises:
        PublishFailed: The tree or the destination is not what it should be.
        RemoteFailed: The destination refused or vanished.
    """
    from lmi_build.digest import digest_bytes
    from lmi_build.errors import PublishFailed
    from lmi_build.publishers.destination import publish as send
    from lmi_build.verify.integrity import read_manifest

    found = read_manifest(tree)
    if found.serving.get("rehearsal"):
        raise PublishFailed(
            f"{found.name} is a rehearsal: it has the commands of an engine, and no"
            " engine",
            code="publish.rehearsal",
            hints=("build it on the machine with the target's GPU, then publish",),
        )
    name = found.name
    manifest = (tree / "manifest.json").read_bytes()
    report = tree.with_name(f"{tree.name}.verify.json")
    return send(
        tree,
        manifest_digest=digest_bytes(manifest),
        name=name,
        destination=destination,
        settings=settings,
        extra={"verify.json": report} if report.is_file() else {},
        emit=emit,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """
    What a look at an artifact found.

    Args:
        uri: Where it lies, with `latest.json` followed.
        manifest_digest: Its identity.
        num_files: Files its manifest lists.
        num_bytes: Bytes of them.
        problems: Everything that is wrong; empty when it is whole.
    """

    uri: str
    manifest_digest: str
    num_files: int
    num_bytes: int
    problems: tuple[Problem, ...]

    def refuse(self) -> None:
        """
        Raise when anything is wrong.

        Raises:
            VerifyFailed: Names every problem.
        """
        if not self.problems:
            return
        from lmi_build.errors import VerifyFailed

        listed = "\n".join(f"  {item.code}: {item.message}" for item in self.problems)
        raise VerifyFailed(
            f"{self.uri} is not what its manifest says\n{listed}",
            code="verify.damaged",
            hints=tuple(item.hint for item in self.problems if item.hint),
        )


def verify_artifact(
    spec: PublishSpec, settings: Settings, *, emit: Emit = ignore
) -> Checked:
    """
    Read every byte of an artifact and compare it with its manifest.

    Args:
        spec: A folder, a version prefix, or a name whose latest version is meant.
        settings: Credentials.
        emit: Where progress goes.

    Raises:
        RemoteFailed: It cannot be read, or there is none.
        VerifyFailed: Its manifest cannot be read.
    """
    from lmi_build.digest import digest_bytes
    from lmi_build.publishers.check import verify_published
    from lmi_build.publishers.reader import open_artifact
    from lmi_build.verify.integrity import check_tree

    with open_artifact(spec.to, settings, access=spec) as reader:
        manifest = reader.manifest_bytes()
        entries = reader.entries()
        local = Path(spec.to)
        packed = "://" not in spec.to and (local / "manifest.json").is_file()
        problems = check_tree(local) if packed else verify_published(reader, emit)
        return Checked(
            uri=reader.uri,
            manifest_digest=digest_bytes(manifest),
            num_files=len(entries) + 1,
            num_bytes=sum(entry.size for entry in entries) + len(manifest),
            problems=problems,
        )


def inspect_artifact(
    spec: PublishSpec, settings: Settings
) -> tuple[Mapping[str, Any], str]:
    """
    Read what an artifact says about itself.

    Returns:
        The manifest as JSON, and where the artifact lies.

    Raises:
        RemoteFailed: It cannot be read, or there is none.
        VerifyFailed: Its manifest cannot be read.
    """
    from lmi_build.publishers.reader import open_artifact
    from lmi_build.values.manifest import Manifest

    with open_artifact(spec.to, settings, access=spec) as reader:
        data = reader.manifest_bytes()
        Manifest.from_bytes(data)
        return json.loads(data), reader.uri


def deployment_requests(
    document: Mapping[str, Any], uri: str, *, region: str, role: str | None = None
) -> Mapping[str, Any]:
    """
    What SageMaker is told to serve an artifact: one body for each call, in order.

    Args:
        document: Its manifest.
        uri: Where it lies.
        region: Region of the endpoint, which decides the image's registry.
        role: The execution role; a placeholder stands where none is given.

    Returns:
        Operation to body; empty where the manifest names no image, or the artifact
        does not lie in S3.

    Raises:
        UsageInvalid: `deploy.*`: SageMaker would refuse it.
    """
    from lmi_build.catalog.images import REPOSITORY
    from lmi_build.catalog.neuron_releases import neuron_releases
    from lmi_build.catalog.releases import releases
    from lmi_build.catalog.vllm_releases import vllm_releases
    from lmi_build.package.deploy import (
        ROLE_PLACEHOLDER,
        deployment_of,
        request_bodies,
    )
    from lmi_build.values.manifest import Manifest

    bound = document["compatibility"]
    name = str(bound.get("release"))
    rows = (releases(), neuron_releases(), vllm_releases())
    release = next((found[name] for found in rows if name in found), None)
    if release is None or not release.tag or not uri.startswith("s3://"):
        return {}
    manifest = Manifest.from_bytes(json.dumps(document).encode())
    # A checkpoint is served by nothing; one container is told by variables alone.
    told = manifest.serving.get("properties") or manifest.deploy.get("environment")
    if not told or manifest.serving.get("rehearsal"):
        return {}
    found = deployment_of(
        manifest,
        uri=uri,
        tag=release.tag,
        repository=getattr(release, "repository", REPOSITORY),
        region=region,
        instance_type=str(bound["instance_type"]),
        role=role or ROLE_PLACEHOLDER,
    )
    return request_bodies(found)


def fetch_artifact(
    spec: PublishSpec, dest: Path, settings: Settings, *, emit: Emit = ignore
) -> str:
    """
    Copy a published artifact into an empty folder, comparing every byte on the way.

    Returns:
        The digest of its manifest.

    Raises:
        RemoteFailed: It cannot be read, or there is none.
        UsageInvalid: The folder holds something else.
        VerifyFailed: What arrived is not what was published.
    """
    from lmi_build.publishers.download import download

    download(spec.to, dest, settings, emit, access=spec)
    return digest_file(dest / MANIFEST_NAME)

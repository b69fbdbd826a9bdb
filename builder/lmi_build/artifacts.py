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
from lmi_build.values.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.folder import Folder
    from lmi_build.errors import Problem
    from lmi_build.events import Emit
    from lmi_build.publishers.reader import ArtifactReader
    from lmi_build.report.data import ReportData
    from lmi_build.values.publish import PublishReceipt
    from lmi_build.values.recipe import PublishSpec
    from lmi_build.values.result import BuildResult
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan


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


@dataclass(frozen=True, kw_only=True, slots=True)
class StartUp:
    """
    What one release of LMI does with a folder when it starts.

    Args:
        release: Row of the catalogue.
        lmi: Version of LMI.
        outcome: `loads`, `compiles`, `skips`, `fails` or `elsewhere`.
        reason: What decides.
        fix: What to change; empty where it loads.
        notes: What can still go wrong.
    """

    release: str
    lmi: str
    outcome: str
    reason: str
    fix: str
    notes: tuple[str, ...]


def start_up(
    spec: PublishSpec, settings: Settings, *, release: str | None = None
) -> tuple[StartUp, ...]:
    """
    Say what LMI's containers do with a folder when they start, without any.

    The folder may be anybody's: it needs no manifest.

    Args:
        spec: A folder, or an S3 prefix.
        settings: Credentials.
        release: A release of the catalogue; None tries all.

    Returns:
        A row for each release, newest first.

    Raises:
        RemoteFailed: It cannot be read.
        UsageInvalid: The catalogue has no such image, or nothing lies there.
        VerifyFailed: A file that the front end reads is absurd.
    """
    from lmi_build.backends.start_up import choose_images, images
    from lmi_build.errors import UsageInvalid
    from lmi_build.publishers.reader import open_folder
    from lmi_build.text import did_you_mean

    with open_folder(spec.to, settings, access=spec) as reader:
        folder = _folder(reader, spec.to)
        chosen = choose_images(folder, release)
        if not chosen:
            names = tuple(images())
            near = did_you_mean(str(release), names)
            raise UsageInvalid(
                f"the catalogue has no LMI image `{release}` for such a folder",
                code="usage.invalid",
                hints=(f"did you mean `{near or names[0]}`?",),
            )
        rows = [(image.name, image.judge(folder)) for image in chosen]
    return tuple(
        StartUp(
            release=name,
            lmi=row.lmi,
            outcome=row.outcome,
            reason=row.reason,
            fix=row.fix,
            notes=row.notes,
        )
        for name, row in rows
    )


def _folder(reader: ArtifactReader, where: str) -> Folder:
    """The files that lie at a place, for whoever asks about them."""
    from lmi_build.backends.folder import listed_folder
    from lmi_build.errors import UsageInvalid

    sizes = reader.list()
    if not sizes:
        raise UsageInvalid(
            f"nothing lies at {where}",
            code="usage.invalid",
            hints=("give the folder or prefix that the container is given",),
        )
    return listed_folder(sizes, reader.read, where=where)


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


def report_page(spec: PublishSpec, settings: Settings) -> tuple[str, str]:
    """
    Write an artifact's report page.

    What the stages cost is taken from the store, as far as it still knows.

    Args:
        spec: A folder, a version prefix, or a name whose latest version is meant.
        settings: Credentials, and where the store is.

    Returns:
        The page as HTML, and the artifact's name.

    Raises:
        RemoteFailed: It cannot be read, or there is none.
        VerifyFailed: Its manifest cannot be read, or `layers.json` was changed.
    """
    from lmi_build.checkpoint.layers import LAYERS_NAME
    from lmi_build.publishers.reader import open_artifact
    from lmi_build.report.collect import known_costs
    from lmi_build.report.load import VERIFY_NAME, report_data
    from lmi_build.report.page import render_report
    from lmi_build.values.manifest import Manifest

    with open_artifact(spec.to, settings, access=spec) as reader:
        data = reader.manifest_bytes()
        manifest = Manifest.from_bytes(data)
        named = any(entry.path == LAYERS_NAME for entry in manifest.files)
        layers = reader.read(LAYERS_NAME) if named else None
        verification = None
        if VERIFY_NAME in reader.list():
            verification = reader.read(VERIFY_NAME)
    if verification is None and "://" not in spec.to:
        tree = Path(spec.to).absolute()
        beside = tree.with_name(f"{tree.name}.{VERIFY_NAME}")
        verification = beside.read_bytes() if beside.is_file() else None
    page = report_data(
        data,
        layers=layers,
        verification=verification,
        stages=known_costs(manifest, data, settings.cache_dir),
    )
    return render_report(page), manifest.name


def write_page(page: str, path: Path, *, option: str = "--out FILE") -> None:
    """
    Write a report page where the user wants it.

    One that was there keeps its mode, and a link its target; a new one may be read by
    whom the user's mask lets read.

    Args:
        page: HTML.
        path: The file.
        option: What named it, for hints.

    Raises:
        UsageInvalid: The folder is missing or cannot be written.
        DoesNotFit: `out.disk-full`.
    """
    import os
    import stat

    from lmi_build.store import files

    path = path.resolve()
    os.umask(mask := os.umask(0))
    try:
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~mask
        files.write_atomic(path, page.encode())
        path.chmod(mode)
    except OSError as error:
        raise files.explain_output_error(
            error, "writing the report", path, option=option
        ) from error


def write_reports(result: BuildResult, settings: Settings) -> Mapping[str, Path]:
    """
    Write the report page of every artifact into the record of the run that built it.

    Returns:
        Artifact name to page; empty when everything was found and nothing recorded.
    """
    from lmi_build.report.collect import reports_of_build

    return _write_pages(reports_of_build(result, settings.cache_dir))


def write_failed_reports(plan: Plan, settings: Settings) -> Mapping[str, Path]:
    """
    Write the report pages of artifacts that were measured and missed a gate.

    They are packed in the store but not laid out anywhere, so the page is where one
    sees what they are like; it goes into the newest record of the recipe.
    """
    from lmi_build.report.collect import reports_of_missed_gates

    return _write_pages(reports_of_missed_gates(plan, settings.cache_dir))


def _write_pages(pages: Mapping[Path, ReportData]) -> Mapping[str, Path]:
    from lmi_build.report.page import render_report
    from lmi_build.store import files

    for path, report in pages.items():
        try:
            files.write_atomic(path, render_report(report).encode())
        except OSError as error:
            doing = "writing the report page"
            raise files.explain_os_error(error, doing, path.parent) from error
    return {report.name: path for path, report in pages.items()}

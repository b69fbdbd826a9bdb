"""Report pages of artifacts, made of what lies at a place or in the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.report.data import ReportData
    from lmi_build.values.recipe import PublishSpec
    from lmi_build.values.result import BuildResult
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan


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

"""What LMI's images do with a folder at a place when they start, without any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmi_build.backends.folder import Folder
    from lmi_build.publishers.reader import ArtifactReader
    from lmi_build.values.recipe import PublishSpec
    from lmi_build.values.settings import Settings


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

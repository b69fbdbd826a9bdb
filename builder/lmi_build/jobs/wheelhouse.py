"""
Wheels of the user's own that a job installs beside ours, without a network.

They travel as a channel of their own, named by their content, so that they are sent
once; the channel `job` holds their hashes, which pip checks before it installs them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.digest import digest_bytes
from lmi_build.errors import Problem, RecipeInvalid
from lmi_build.jobs.upload import folder_digest, key_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.digest import Digest
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.stage import Stage

PATH = "job.wheels"
# What a lock calls the folder's digest among its images.
LOCKED_AS = "wheels"
_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[A-Za-z0-9_.!+]+)(-\d[A-Za-z0-9_.]*)?"
    r"-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+\.whl"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheelhouse:
    """
    A folder of wheels.

    Args:
        files: By file name.
        versions: Distribution to its version; names in pip's normal form.
        digest: The folder's name by its content.
    """

    files: Mapping[str, bytes]
    versions: Mapping[str, str]
    digest: Digest

    @property
    def key(self) -> str:
        """Where the channel lies below the store's prefix."""
        return key_of(self.digest)

    def has(self, tool: str) -> bool:
        """Whether a distribution is among them."""
        return normal(tool) in self.versions

    def requirements(self) -> bytes:
        """The wheels with their hashes as pip reads them, relative to their folder."""
        lines = [
            f"./{name} --hash={digest_bytes(data)}"
            for name, data in sorted(self.files.items())
        ]
        return "".join(f"{line}\n" for line in lines).encode()


def normal(name: str) -> str:
    """A distribution's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def find_wheelhouse(recipe: Recipe, *, held: bool = True) -> Wheelhouse | None:
    """
    The wheels that a recipe names; None where it names none.

    Args:
        recipe: Checked; a relative folder starts at its own.
        held: Whether they are held against the recipe's lock.

    Raises:
        RecipeInvalid: `job.wheels`: there are none, or one of them is no wheel;
            `lock.changed`: they are not those of the lock.
    """
    if recipe.job is None or recipe.job.wheels is None:
        return None
    said = recipe.job.wheels
    folder = Path(recipe.file).parent / Path(said).expanduser()
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix == ".whl")
        files = {path.name: path.read_bytes() for path in found}
    except OSError as error:
        raise _refused(recipe, f"`{said}` cannot be read: {error.strerror}") from error
    if not files:
        raise _refused(recipe, f"`{said}` holds no wheels")
    versions: dict[str, str] = {}
    for name in files:
        match = _NAME.fullmatch(name)
        if match is None:
            raise _refused(recipe, f"`{name}` in `{said}` is not named as a wheel is")
        distribution = normal(match["name"])
        if distribution in versions:
            raise _refused(recipe, f"`{said}` holds two wheels of {distribution}")
        versions[distribution] = match["version"]
    made = Wheelhouse(files=files, versions=versions, digest=folder_digest(files))
    locked = recipe.lock.images.get(LOCKED_AS) if recipe.lock else None
    if locked and locked != made.digest and held:
        raise _changed(recipe, said, locked, made.digest)
    return made


def _changed(recipe: Recipe, said: str, locked: str, found: str) -> RecipeInvalid:
    problem = Problem(
        code="lock.changed",
        message=f"`{said}` holds other wheels than the lock: {found}, locked {locked}",
        path=PATH,
        hint="put the locked wheels back, or `lmi-build lock RECIPE` writes these down",
    )
    return RecipeInvalid((recipe.locate(problem),))


def _refused(recipe: Recipe, message: str) -> RecipeInvalid:
    problem = Problem(
        code="job.wheels",
        message=message,
        path=PATH,
        hint="fill it for the image's Python: `pip download --only-binary=:all:"
        " --python-version 3.12 --dest FOLDER PACKAGE==VERSION`",
    )
    return RecipeInvalid((recipe.locate(problem),))


def version_problem(stage: Stage, wheels: Wheelhouse | None) -> Problem | None:
    """
    Why a wheel is not the tool that a stage was planned with.

    Its key holds the version; the job would refuse another one in its first minute.

    Args:
        stage: Of a plan.
        wheels: Of its recipe.
    """
    if wheels is None or stage.toolchain:
        return None
    for tool, version in sorted(stage.tools.items()):
        brought = wheels.versions.get(normal(tool))
        if brought is not None and brought != version:
            return Problem(
                code="job.wheel-version",
                message=f"stage `{stage.kind}` is planned with {tool} {version}, and"
                f" the wheel is of {brought}",
                path=PATH,
                hint=f"put the wheel of {tool} {version} there, or install {brought}"
                " where the plan is made and `lmi-build lock RECIPE --upgrade tools`",
            )
    return None

"""A backend of another distribution is found, obeys the laws, and may break each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "tests" / "plugins"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip installed the plugin into, with its metadata."""
    place = tmp_path_factory.mktemp("plugin")
    source = place / "source"
    shutil.copytree(PLUGINS / "lmi_build_echo", source)
    words = "install --quiet --no-deps --no-index --no-build-isolation --target"
    subprocess.run(
        [sys.executable, "-m", "pip", *words.split(), place / "site", source],
        check=True,
    )
    return place / "site"


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that has the plugin."""
    path = os.pathsep.join([str(installed), str(PLUGINS)])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_found_through_its_entry_point(installed: Path) -> None:
    """Beside ours, and from the folder that pip made, whatever else is installed."""
    code = (
        "from lmi_build import registry; print(registry.names(registry.BACKENDS));"
        "import lmi_build_echo; print(lmi_build_echo.__file__)"
    )
    done = run(installed, "-c", code)
    names, place = done.stdout.splitlines()

    assert {"'echo'", "'onnxruntime'"} <= set(names.strip("()").split(", "))
    assert Path(place).is_relative_to(installed)


def test_it_passes_the_suite_and_each_fault_is_seen(installed: Path) -> None:
    """As its author would run it; both files in one process, which loads torch once."""
    files = [str(PLUGINS / name) for name in ("echo_laws.py", "broken_laws.py")]
    done = run(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "skipped" not in done.stdout

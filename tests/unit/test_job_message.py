"""The message of a job: one kilobyte of UTF-8, the cause first, no secret."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmi_build.events import StageNote
from lmi_build.execute.redact import Redactor
from lmi_build.jobs.simulation.container import namespace
from lmi_build.sagemaker.message import cut, message_bytes, write_message
from lmi_build.sagemaker.places import MESSAGE_BYTES, Places
from lmi_build.sagemaker.results import end_message, materialise_links
from lmi_build.sagemaker.watch import Watch
from lmi_build.values.job import JobResult

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TEXTS = st.text(st.characters(codec=None), max_size=2000)
NOBODY = Redactor(())


def failed(message: str, hints: Sequence[str] = ()) -> JobResult:
    """A result that failed so."""
    return JobResult(
        name="j",
        host="algo-1",
        ok=False,
        exit_code=4,
        code="store.disk-full",
        message=message,
        hints=tuple(hints),
    )


@given(TEXTS, st.integers(8, 1100))
def test_a_cut_text_is_utf8_and_fits(text: str, limit: int) -> None:
    """Any text, half surrogate pairs too, becomes whole characters within the limit."""
    data = cut(text, limit)

    whole = text.encode("utf-8", "backslashreplace")
    assert len(data) <= limit
    data.decode("utf-8")
    if len(whole) <= limit:
        assert data == whole
    else:
        assert data.endswith(b"...")
        assert whole.startswith(data[:-3])


@given(TEXTS, st.lists(TEXTS, max_size=3))
def test_the_cause_stands_first_and_a_hint_is_kept(
    message: str, hints: list[str]
) -> None:
    """However long the cause is, the code leads and the first hint begins."""
    data = message_bytes(failed(message, hints), NOBODY)

    assert len(data) <= MESSAGE_BYTES
    assert data.decode().startswith("error[store.disk-full]: ")
    assert not hints or b"\nhint: " in data


@given(st.integers(0, 1100))
def test_no_part_of_a_secret_is_left_at_the_cut(before: int) -> None:
    """Redacted first, cut afterwards."""
    secret = "hf_0123456789abcdefghij"

    data = message_bytes(failed("x" * before + secret), Redactor((secret,)))

    assert b"hf_0" not in data


def test_success_leaves_no_failure_of_a_training_job(tmp_path: Path) -> None:
    """What was foretold at the start is taken back at the end."""
    watch = Watch(places=Places(kind="training", root=tmp_path))
    watch.foretell()
    foretold = (tmp_path / "output/failure").read_text()

    end_message(watch, watch.result(exit_code=0, message="ok"))

    assert foretold.startswith("error[job.killed]: before the first stage")
    assert not (tmp_path / "output/failure").exists()


def test_a_processing_job_tells_its_success(tmp_path: Path) -> None:
    """ExitMessage holds where the artifact is, and what it is."""
    watch = Watch(places=Places(kind="processing", root=tmp_path))
    result = watch.result(exit_code=0, message="ok\ns3://b/x sha256:00")

    write_message(watch.places, result, NOBODY)

    assert (tmp_path / "output/message").read_text() == "ok\ns3://b/x sha256:00"


def test_events_words_and_results_hide_secrets(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever a container prints or leaves went through its redactor."""
    secret = "hf_0123456789abcdefghij"
    watch = Watch(
        places=Places(kind="processing", root=tmp_path), redactor=Redactor((secret,))
    )

    watch.emit(
        StageNote(stage="r/fetch", level="info", code="x.y", message=f"with {secret}")
    )
    watch.say(f"Traceback: {secret}")
    result = watch.result(exit_code=1, message=secret, hints=(secret,))
    end_message(watch, result)

    out, err = capfd.readouterr()
    left = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) == 1
    assert out.count("[redacted]") == err.count("[redacted]") == 1
    assert secret not in "".join([out, err, repr(result), *left])


FULL = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from lmi_build.sagemaker.places import Places
from lmi_build.sagemaker.results import end_message
from lmi_build.sagemaker.watch import Watch
watch = Watch(places=Places(kind="processing", root=Path({root!r})))
watch.foretell()
fill = open({root!r} + "/fill", "wb", buffering=0)
try:
    while True:
        fill.write(bytes(1))if fill.tell() % 4096 else fill.write(bytes(4096))
except OSError as error:
    assert error.errno == 28, error
end_message(watch, watch.result(exit_code=4, code="x.full", message="full"))
print((Path({root!r}) / "output/message").read_text())
"""


@pytest.mark.skipif(not namespace(), reason="needs a mount namespace of its own")
def test_the_last_word_needs_no_room(tmp_path: Path) -> None:
    """On a volume without a free block the message is still the true one."""
    program = FULL.format(path=sys.path, root=str(tmp_path))
    mount = 'mount -t tmpfs -o size=64k tmpfs "$1"; shift; exec "$@"'

    done = subprocess.run(
        [
            *[*namespace(), "bash", "-c", mount, "sh", str(tmp_path)],
            *[sys.executable, "-c", program],
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "error[x.full]: full"


def test_links_in_outputs_become_files(tmp_path: Path) -> None:
    """SageMaker follows none: what they point to is put in their place."""
    places = Places(kind="processing", root=tmp_path)
    outside = tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "folder/deep.txt").write_text("deep")
    (outside / "file.txt").write_text("text")
    report = places.output("report")
    report.mkdir(parents=True)
    (report / "file.txt").symlink_to(outside / "file.txt")
    (report / "folder").symlink_to(outside / "folder")
    (report / "gone").symlink_to(outside / "gone")

    materialise_links(places)

    assert not [path for path in report.rglob("*") if path.is_symlink()]
    assert (report / "file.txt").read_text() == "text"
    assert (report / "folder/deep.txt").read_text() == "deep"
    assert not (report / "gone").exists()

"""What a build keeps and says when things go wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from lmi_build.errors import (
    DoesNotFit,
    LmiBuildError,
    SourceInvalid,
    StageFailed,
    StoreUnusable,
)
from lmi_build.events import Event, StageNote, ignore
from lmi_build.execute.executor import execute
from lmi_build.store.gc import verify_store
from lmi_build.store.store import Store
from stage_plans import STAGES, chain, plan, settings, stage

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.values.result import BuildResult
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan


def run(item: Plan, given: Settings, **options: object) -> BuildResult:
    """Execute a plan in the store of its settings."""
    store = Store(given.cache_dir)
    return execute(item, store=store, settings=given, emit=ignore, **options)  # type: ignore[arg-type]


def text_of(result: BuildResult, kind: str, given: Settings) -> str:
    """What a stage of the sample plan wrote."""
    entry = result.artifacts["sample"][kind].entries[0]
    return Store(given.cache_dir).blob_path(entry.digest).read_text()


def lines(path: Path) -> list[str]:
    """Lines of a counter file."""
    return path.read_text().splitlines() if path.exists() else []


def test_second_build_runs_no_worker(tmp_path: Path) -> None:
    """Everything that was built once is found again, byte for byte."""
    given = settings(tmp_path)
    counter = tmp_path / "count"

    first = run(chain(counter=str(counter)), given)
    second = run(chain(counter=str(counter)), given)

    assert text_of(first, "compile", given) == "abc"
    assert first.num_built == 3
    assert second.num_built == 0
    assert len(lines(counter)) == 3
    assert verify_store(Store(given.cache_dir)) == []


def test_changed_parameter_rebuilds_itself_and_later_only(tmp_path: Path) -> None:
    """A new parameter of the second stage leaves the first one cached."""
    given = settings(tmp_path)
    run(chain(), given)
    first = stage("fetch", text="a")
    second = stage("quantize", text="B", inputs={"model": first.key})

    result = run(plan(first, second), given)

    assert [row.cached for row in result.rows] == [True, False]


def test_error_of_a_worker_reaches_the_user(tmp_path: Path) -> None:
    """Code, message and hints cross the process boundary unchanged."""
    with pytest.raises(SourceInvalid) as caught:
        run(plan(stage("fetch", "refuse")), settings(tmp_path))

    assert caught.value.code == "source.test"
    assert caught.value.hints == ("replace it",)


def test_crash_names_stage_and_log(tmp_path: Path) -> None:
    """A bug in a provider ends as a failed stage, with the traceback in its log."""
    given = settings(tmp_path)

    with pytest.raises(StageFailed, match="ZeroDivisionError: a bug") as caught:
        run(plan(stage("fetch", "crash")), given)

    (log,) = given.cache_dir.rglob("*.log")
    assert caught.value.code == "stage.crashed"
    assert "Traceback" in log.read_text()


def test_failed_stage_is_not_kept(tmp_path: Path) -> None:
    """A failure is tried again, never remembered."""
    given = settings(tmp_path)
    item = plan(stage("fetch", "crash"))
    for _ in range(2):
        with pytest.raises(StageFailed):
            run(item, given)

    assert Store(given.cache_dir).lookup(item.stages[0].key) is None


def test_secrets_reach_no_log_and_no_undeclared_worker(tmp_path: Path) -> None:
    """A token is not in the environment of a stage that does not ask for it."""
    given = settings(tmp_path, hub={"HF_TOKEN": "hf_very_secret"})

    with pytest.raises(SourceInvalid):
        run(plan(stage("fetch", "refuse")), given)

    (log,) = given.cache_dir.rglob("*.log")
    assert "'PYTHONHASHSEED': '0'" in log.read_text()
    assert "HF_TOKEN" not in log.read_text()


def test_declared_secret_is_redacted_in_the_log(tmp_path: Path) -> None:
    """A stage that gets a token and prints it leaves `[redacted]` in its log."""
    from dataclasses import replace

    given = settings(tmp_path, hub={"HF_TOKEN": "hf_very_secret"})
    item = replace(stage("fetch", "refuse"), secrets=("hub",))

    with pytest.raises(SourceInvalid):
        run(plan(item), given)

    (log,) = given.cache_dir.rglob("*.log")
    assert "'HF_TOKEN': '[redacted]'" in log.read_text()
    for path in given.cache_dir.rglob("*"):
        assert not path.is_file() or b"hf_very_secret" not in path.read_bytes()


def test_link_in_a_result_is_refused(tmp_path: Path) -> None:
    """A result holds plain files only."""
    with pytest.raises(StageFailed) as caught:
        run(plan(stage("fetch", "link")), settings(tmp_path))

    assert caught.value.code == "store.foreign-file"


@pytest.mark.parametrize("die_after", range(5))
def test_killed_stage_goes_on_where_it_was(tmp_path: Path, die_after: int) -> None:
    """No step is done twice, wherever the worker was killed."""
    given = settings(tmp_path)
    counter = str(tmp_path / "count")
    dying = plan(
        stage("fetch", "resume", job={"counter": counter, "die_after": die_after})
    )
    living = plan(stage("fetch", "resume", job={"counter": counter}))

    with pytest.raises(DoesNotFit, match="killed") as caught:
        run(dying, given)
    run(living, given)

    assert caught.value.code == "stage.killed"
    assert lines(tmp_path / "count") == ["0", "1", "2", "3", "4"]
    assert verify_store(Store(given.cache_dir)) == []


def test_two_builds_of_one_key_do_the_work_once(tmp_path: Path) -> None:
    """Builds that meet wait for each other and share the result."""
    given = settings(tmp_path)
    counter = tmp_path / "count"
    results: list[BuildResult] = []

    def one() -> None:
        results.append(run(chain(counter=str(counter), sleep=0.2), given))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(lines(counter)) == [
        "sample/compile",
        "sample/fetch",
        "sample/quantize",
    ]
    assert sum(result.num_built for result in results) == 3


def test_full_disk_is_told_and_nothing_is_kept(tmp_path: Path) -> None:
    """A worker that meets ENOSPC ends as `does not fit`, and the store stays clean."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounting a small file system")
    small = tmp_path / "small"
    small.mkdir()
    script = (
        "import sys; sys.path[:0] = [{!r}, {!r}]\n"
        "from test_execute import *\n"
        "from pathlib import Path\n"
        "given = settings(Path(sys.argv[1]))\n"
        "try:\n    run(plan(stage('fetch', 'fill')), given)\n"
        "except LmiBuildError as e:\n"
        "    print(e.code, e.exit_code, verify_store(Store(given.cache_dir)))\n"
    ).format(str(STAGES.parents[1]), str(STAGES.parents[1] / "fault"))
    mount = f'mount -t tmpfs -o size=8m tmpfs {small} && exec "$@"'

    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", script, small],
        capture_output=True,
        text=True,
        check=False,
    )

    if "unshare" in done.stderr:
        pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
    assert done.stdout.strip() == "store.disk-full 4 []", done.stderr


def test_store_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A cache folder that is a file ends with a way out, not a traceback."""
    given = settings(tmp_path)
    given.cache_dir.write_text("in the way")

    with pytest.raises(StoreUnusable) as caught:
        run(chain(), given)

    assert caught.value.code == "store.io-error"
    assert str(given.cache_dir) in caught.value.message


def test_damaged_record_is_a_miss_and_is_named(tmp_path: Path) -> None:
    """A record with a flipped byte is never used; `verify` says so."""
    given = settings(tmp_path)
    store = Store(given.cache_dir)
    item = chain()
    run(item, given)
    path = store.record_path(item.stages[0].key)
    path.write_text(path.read_text().replace('"text": "a"', '"text": "z"'))

    assert store.lookup(item.stages[0].key) is None
    assert [fault.code for fault in verify_store(store)] == ["store.bad-record"]
    assert run(item, given).num_built == 1


def test_every_flipped_bit_is_found_and_repaired(tmp_path: Path) -> None:
    """`verify` reads every byte; `repair` makes the next build right again."""
    from lmi_build.store.gc import repair

    given = settings(tmp_path)
    store = Store(given.cache_dir)
    first = run(chain(), given)
    blob = store.blob_path(first.artifacts["sample"]["compile"].entries[0].digest)
    for bit in range(8 * blob.stat().st_size):
        data = bytearray(blob.read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        blob.chmod(0o644)
        blob.write_bytes(data)
        faults = verify_store(store)
        assert [fault.code for fault in faults] == ["store.corrupt"]
        data[bit // 8] ^= 1 << bit % 8
        blob.write_bytes(data)
    blob.write_bytes(b"xxx")

    repair(store, verify_store(store))
    again = run(chain(), given)

    assert again.num_built == 1
    assert text_of(again, "compile", given) == "abc"
    assert verify_store(store) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_worker_and_its_children_end_with_the_build(
    tmp_path: Path, number: signal.Signals
) -> None:
    """A build that is stopped or killed leaves no process and no lock behind."""
    script = (
        f"import sys; sys.path[:0] = [{str(STAGES.parents[1])!r}]\n"
        "from pathlib import Path\n"
        "from stage_plans import *\n"
        "from lmi_build.execute.executor import execute\n"
        "from lmi_build.store.store import Store\n"
        "given = settings(Path(sys.argv[1]))\n"
        "execute(plan(stage('fetch', 'hang')), store=Store(given.cache_dir),\n"
        "    settings=given, emit=lambda e: print(e, flush=True))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pids: list[int] = []
    for line in process.stdout:
        found = re.search(r"message='(\d+) (\d+)'", line)
        if found:
            pids = [int(found.group(1)), int(found.group(2))]
            break

    process.send_signal(number)
    process.wait()
    process.stdout.close()

    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pids
    assert [alive(pid) for pid in pids] == [False, False]
    assert run(chain(), settings(tmp_path)).num_built == 3


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended but was not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:  # noqa: PTH123
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_events_tell_the_whole_story(tmp_path: Path) -> None:
    """Every stage starts, reports and finishes; the run ends once; logs keep it all."""
    given = settings(tmp_path)
    seen: list[Event] = []

    execute(chain(), store=Store(given.cache_dir), settings=given, emit=seen.append)

    names = [type(event).__name__ for event in seen]
    assert names[0] == "PlanReady"
    assert names[1:-1] == ["StageStarted", "StageProgress", "StageFinished"] * 3
    assert names[-1] == "BuildFinished"
    (record,) = given.cache_dir.rglob("events.ndjson")
    assert len(record.read_text().splitlines()) == len(seen)
    assert not [event for event in seen if isinstance(event, StageNote)]


def test_unwritable_error_type_is_an_lmi_build_error() -> None:
    """Every error a worker may send can be raised again by its parent."""
    from lmi_build.errors import error_from_json, error_to_json

    error = DoesNotFit("m", code="a.b", hints=("h",))
    again = error_from_json(error_to_json(error))

    assert isinstance(again, LmiBuildError)
    assert (type(again), again.code, again.message) == (DoesNotFit, "a.b", "m")

"""Laws of models on a hub: what is asked, what is kept, what failures look like."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from hub_server import COMMIT, TOKEN, Hub, Rule, serve_hub, unused_port
from lmi_build.errors import LmiBuildError, RemoteFailed, SourceInvalid
from lmi_build.events import ignore
from lmi_build.sources import download, hub
from lmi_build.sources.fetch import run
from lmi_build.sources.resolve import (
    fetch_settings,
    fetch_stage_params,
    resolve_model,
)
from lmi_build.spi import Job
from lmi_build.values.recipe import ModelSpec
from lmi_build.values.settings import Settings
from tiny_models import SHAPES, hf_files, safetensors, sentence_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lmi_build.values.model import ModelFacts

REPO = "tiny/llama"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(download, "_MAX_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(hub.retry, "__kwdefaults__", {"first_wait_seconds": 0.001})
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Hub]:
    with serve_hub({REPO: hf_files()}) as running:
        yield running


def settings(server: Hub, folder: Path, **more: Any) -> Settings:
    return Settings(cache_dir=folder / "cache", hf_endpoint=server.url, **more)


def resolve(server: Hub, folder: Path, **wishes: Any) -> ModelFacts:
    more = {k: wishes.pop(k) for k in ("offline", "secrets") if k in wishes}
    spec = ModelSpec(**{"source": REPO, **wishes})
    return resolve_model(spec, settings=settings(server, folder, **more), base=folder)


def make_job(facts: ModelFacts, server: Hub, folder: Path, **wishes: Any) -> Job:
    out, state = folder / "out", folder / "state"
    out.mkdir()
    state.mkdir(exist_ok=True)
    return Job(
        stage="tiny/fetch",
        params=fetch_stage_params(facts, ModelSpec(source=REPO, **wishes)),
        inputs={},
        out=out,
        state=state,
        settings=fetch_settings(facts, settings(server, folder)),
    )


def error_of(action: Any) -> LmiBuildError:
    with pytest.raises(LmiBuildError) as caught:
        action()

    assert caught.value.hints
    return caught.value


def test_facts_pin_the_branch_to_its_commit_and_read_no_weight(
    server: Hub, tmp_path: Path
) -> None:
    server.repos[REPO]["model.safetensors"] += b""
    facts = resolve(server, tmp_path)

    assert facts.revision == COMMIT
    assert {t.name: t.shape for t in facts.tensors} == SHAPES
    assert [f.digest.partition(":")[0] for f in facts.files] == [
        "git-sha1",
        "git-sha1",
        "git-sha1",
        "sha256",
        "git-sha1",
        "git-sha1",
    ]


def test_of_a_large_file_only_the_header_is_read(server: Hub, tmp_path: Path) -> None:
    shapes = SHAPES | {"model.layers.0.extra.weight": (1000, 1000)}
    server.repos[REPO]["model.safetensors"] = safetensors(shapes)
    resolve(server, tmp_path)

    assert server.served["model.safetensors"] < 300_000
    assert len(server.repos[REPO]["model.safetensors"]) > 4_000_000


def test_a_pinned_commit_that_is_known_needs_no_network(
    server: Hub, tmp_path: Path
) -> None:
    first = resolve(server, tmp_path, revision=COMMIT)
    server.requests.clear()

    assert resolve(server, tmp_path, revision=COMMIT) == first
    assert server.requests == []


def test_a_branch_is_asked_again_but_an_unmoved_one_costs_one_request(
    server: Hub, tmp_path: Path
) -> None:
    first = resolve(server, tmp_path)
    server.requests.clear()

    assert resolve(server, tmp_path) == first
    assert len(server.requests) == 1


def test_a_moved_branch_is_seen(server: Hub, tmp_path: Path) -> None:
    first = resolve(server, tmp_path)
    server.branches["main"] = "f" * 40
    server.repos[REPO]["LICENSE"] = b"another"
    second = resolve(server, tmp_path)

    assert second.revision == "f" * 40
    assert second.files != first.files


def test_offline_uses_the_last_resolution_and_asks_nobody(
    server: Hub, tmp_path: Path
) -> None:
    first = resolve(server, tmp_path)
    server.requests.clear()

    assert resolve(server, tmp_path, offline=True) == first
    assert server.requests == []


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_offline_without_a_resolution_says_what_to_do(
    revision: str, server: Hub, tmp_path: Path
) -> None:
    error = error_of(lambda: resolve(server, tmp_path, offline=True, revision=revision))

    assert error.code == "source.offline"
    assert "--offline" in error.hints[0]
    assert server.requests == []


def test_a_gated_repository_names_its_page_and_the_variable(
    server: Hub, tmp_path: Path
) -> None:
    server.rules.append(Rule(match="/resolve/", kind="gated", times=99))
    error = error_of(lambda: resolve(server, tmp_path))

    assert error.code == "source.gated"
    assert error.exit_code == 6
    assert f"{server.url}/{REPO}" in error.hints[0]
    assert "HF_TOKEN" in error.hints[0]


def test_a_token_is_sent_and_never_shown(server: Hub, tmp_path: Path) -> None:
    server.rules.append(Rule(match="/resolve/", kind="gated", times=99))
    secrets = {"hub": {"HF_TOKEN": TOKEN}}
    error = error_of(lambda: resolve(server, tmp_path, secrets=secrets))

    assert server.tokens == {f"Bearer {TOKEN}"}
    assert "your token has no access" in error.message
    assert TOKEN not in f"{error.message} {error.hints} {error.__cause__!r}"


def test_no_token_is_taken_from_anywhere_else(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    resolve(server, tmp_path)

    assert server.tokens == {""}


@pytest.mark.parametrize(
    ("wishes", "code"),
    [
        ({"source": "tiny/none"}, "source.repo-missing"),
        ({"revision": "none"}, "source.revision-missing"),
    ],
)
def test_what_a_hub_does_not_have_is_told_apart(
    wishes: dict[str, str], code: str, server: Hub, tmp_path: Path
) -> None:
    assert error_of(lambda: resolve(server, tmp_path, **wishes)).code == code


def test_a_401_for_a_private_or_missing_repository_suggests_a_token(
    server: Hub, tmp_path: Path
) -> None:
    server.rules.append(Rule(match="/api/", kind="unauthorized"))
    error = error_of(lambda: resolve(server, tmp_path))

    assert error.code == "source.repo-missing"
    assert any("HF_TOKEN" in hint for hint in error.hints)


def test_nobody_at_the_endpoint_is_a_remote_failure(tmp_path: Path) -> None:
    nowhere = Hub(repos={}, url=f"http://127.0.0.1:{unused_port()}")
    error = error_of(lambda: resolve(nowhere, tmp_path))

    assert error.code == "source.unreachable"
    assert error.exit_code == 6
    assert nowhere.url in error.message


def test_a_busy_hub_is_asked_again(server: Hub, tmp_path: Path) -> None:
    server.rules.append(Rule(match="/api/", kind="503", times=2))
    server.rules.append(Rule(match="model.safetensors", kind="503", times=1))

    assert resolve(server, tmp_path).revision == COMMIT


def test_pickles_on_a_hub_are_refused_unread(server: Hub, tmp_path: Path) -> None:
    files = server.repos[REPO]
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    error = error_of(lambda: resolve(server, tmp_path))

    assert error.code == "source.pickle-only"
    assert server.served["pytorch_model.bin"] == 0


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/x.safetensors", "C:x"])
def test_a_name_that_leaves_the_folder_never_reaches_the_disk(
    name: str, server: Hub, tmp_path: Path
) -> None:
    index = f'{{"weight_map": {{"w": "{name}"}}}}'.encode()
    server.repos[REPO]["model.safetensors.index.json"] = index
    server.repos[REPO][name] = b"x"

    assert error_of(lambda: resolve(server, tmp_path)).code == "source.unsafe-name"


def test_fetch_brings_exactly_the_planned_files(server: Hub, tmp_path: Path) -> None:
    job = make_job(resolve(server, tmp_path), server, tmp_path)
    run(job, ignore)
    found = {p.name: p.read_bytes() for p in job.out.iterdir()}

    assert found == {n: d for n, d in hf_files().items() if n in found}
    assert len(found) == 6


def test_a_fetch_of_a_pinned_commit_ignores_a_branch_that_moved(
    server: Hub, tmp_path: Path
) -> None:
    job = make_job(resolve(server, tmp_path), server, tmp_path)
    server.requests.clear()
    run(job, ignore)

    assert all(f"/resolve/{COMMIT}/" in request for request in server.requests)


def big(server: Hub) -> int:
    shapes = SHAPES | {"model.layers.0.extra.weight": (1000, 1000)}
    server.repos[REPO]["model.safetensors"] = safetensors(shapes)
    return len(server.repos[REPO]["model.safetensors"])


def test_a_dropped_connection_goes_on_where_it_broke(
    server: Hub, tmp_path: Path
) -> None:
    size = big(server)
    job = make_job(resolve(server, tmp_path), server, tmp_path)
    server.served.clear()
    server.rules.append(
        Rule(match="model.safetensors", kind="drop", times=3, after=1_000_000)
    )
    run(job, ignore)
    twice = server.served["model.safetensors"] - size

    assert (job.out / "model.safetensors").stat().st_size == size
    assert 0 <= twice < 100_000


def test_a_killed_download_is_continued_by_the_next_attempt(
    server: Hub, tmp_path: Path
) -> None:
    size = big(server)
    job = make_job(resolve(server, tmp_path), server, tmp_path)
    server.served.clear()
    server.rules.append(
        Rule(match="model.safetensors", kind="drop", times=1, after=3_000_000)
    )
    server.rules.append(Rule(match="model.safetensors", kind="503", times=99))
    error = error_of(lambda: run(job, ignore))
    part = job.state / "download" / "model.safetensors.part"
    kept = part.stat().st_size
    server.rules.clear()
    run(job, ignore)

    assert error.code == "source.unreachable"
    assert kept > 2_900_000
    assert server.served["model.safetensors"] - size <= 3_000_000 - kept
    assert (job.out / "model.safetensors").stat().st_size == size


def test_a_download_survives_the_death_of_its_process(
    server: Hub, tmp_path: Path
) -> None:
    size = big(server)
    job = make_job(resolve(server, tmp_path), server, tmp_path)
    server.served.clear()
    code = (
        "import sys, os\n"
        "from pathlib import Path\n"
        "from lmi_build.sources.download import download_all\n"
        "from lmi_build.sources.hub_http import HubRemote\n"
        "from lmi_build.values.model import FileFact\n"
        "url, repo, commit, digest, size, folder = sys.argv[1:]\n"
        "done = 0\n"
        "def count(n):\n"
        "    global done\n"
        "    done += n\n"
        "    if done >= 2 << 20: os.kill(os.getpid(), 9)\n"
        "remote = HubRemote(repo, revision=commit, endpoint=url, token=None)\n"
        "file = FileFact(path='model.safetensors', size=int(size), digest=digest)\n"
        "download_all(remote, [file], Path(folder), on_bytes=count)\n"
    )
    folder = job.state / "download"
    folder.mkdir()
    planned: Any = job.params["files"]
    digest = {path: digest for path, digest, _ in planned}["model.safetensors"]
    arguments = [server.url, REPO, COMMIT, digest, str(size), str(folder)]
    died = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=False, timeout=60
    )
    kept = (folder / "model.safetensors.part").stat().st_size
    # The server may still be writing what the dead process asked for.
    deadline = time.monotonic() + 10
    while server.served["model.safetensors"] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    server.served.clear()
    run(job, ignore)

    assert died.returncode == -9
    assert kept >= 2 << 20
    assert server.served["model.safetensors"] == size - kept


def test_a_server_that_ignores_ranges_costs_bytes_but_not_truth(
    server: Hub, tmp_path: Path
) -> None:
    size = big(server)
    job = make_job(resolve(server, tmp_path), server, tmp_path)
    server.rules += [
        Rule(match="model.safetensors", kind="drop", times=1, after=1_000_000),
        Rule(match="model.safetensors", kind="no-range", times=99),
    ]
    run(job, ignore)

    assert (job.out / "model.safetensors").stat().st_size == size
    assert (
        job.out.joinpath("model.safetensors").read_bytes()
        == (server.repos[REPO]["model.safetensors"])
    )


def test_a_wrong_byte_is_noticed_and_fetched_again(server: Hub, tmp_path: Path) -> None:
    job = make_job(resolve(server, tmp_path), server, tmp_path)
    server.rules.append(Rule(match="/tokenizer.json", kind="flip"))
    run(job, ignore)

    assert (job.out / "tokenizer.json").read_bytes() == hf_files()["tokenizer.json"]


def test_a_byte_that_stays_wrong_fails_the_fetch(server: Hub, tmp_path: Path) -> None:
    job = make_job(resolve(server, tmp_path), server, tmp_path)
    server.rules.append(Rule(match="/tokenizer.json", kind="flip", times=99))
    error = error_of(lambda: run(job, ignore))

    assert error.code == "source.corrupt-download"
    assert not (job.state / "download" / "tokenizer.json").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.part"])
def test_what_an_earlier_attempt_left_is_checked_before_it_is_used(
    name: str, server: Hub, tmp_path: Path
) -> None:
    data = hf_files()["model.safetensors"]
    job = make_job(resolve(server, tmp_path), server, tmp_path)
    folder = job.state / "download"
    folder.mkdir()
    (folder / name).write_bytes(b"\0" * (len(data) - 5))
    run(job, ignore)

    assert (job.out / "model.safetensors").read_bytes() == data


def test_a_file_that_vanished_from_its_commit_is_named(
    server: Hub, tmp_path: Path
) -> None:
    job = make_job(resolve(server, tmp_path), server, tmp_path)
    del server.repos[REPO]["LICENSE"]
    error = error_of(lambda: run(job, ignore))

    assert isinstance(error, SourceInvalid)
    assert error.code == "source.file-missing"
    assert "LICENSE" in error.message


def test_offline_forbids_a_fetch(server: Hub, tmp_path: Path) -> None:
    job = make_job(resolve(server, tmp_path), server, tmp_path)
    server.requests.clear()
    closed = Job(
        stage=job.stage,
        params=job.params,
        inputs={},
        out=job.out,
        state=job.state,
        settings={**job.settings, "offline": True},
    )
    error = error_of(lambda: run(closed, ignore))

    assert isinstance(error, RemoteFailed)
    assert error.code == "source.offline"
    assert server.requests == []


def test_weights_from_a_hub_can_be_cast(server: Hub, tmp_path: Path) -> None:
    facts = resolve(server, tmp_path, dtype="bfloat16")
    job = make_job(facts, server, tmp_path, dtype="bfloat16")
    run(job, ignore)

    assert {t.dtype for t in facts.tensors} == {"bfloat16"}
    assert b'"BF16"' in (job.out / "model.safetensors").read_bytes()


def test_a_sentence_encoder_brings_the_settings_of_its_modules(tmp_path: Path) -> None:
    """They lie one folder down, and nothing else of there is taken."""
    with serve_hub({REPO: {**hf_files(), **sentence_files()}}) as server:
        job = make_job(resolve(server, tmp_path), server, tmp_path)
        run(job, ignore)

    assert (job.out / "1_Pooling" / "config.json").is_file()
    assert [path.name for path in (job.out / "1_Pooling").iterdir()] == ["config.json"]

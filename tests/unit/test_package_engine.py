"""Loading an artifact's engine: only its own code, only on the right machine."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

from lmi_build.errors import LmiBuildError, ToolMissing, Unsupported, UsageInvalid
from lmi_build.package.engine import load_engine
from lmi_build.package.handlers import aotinductor
from lmi_build.serve.server import listen, serve
from packed import echo_artifact

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.values.manifest import FileEntry, Manifest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for an artifact."""
    return tmp_path


@pytest.fixture
def manifest(root: Path) -> Manifest:
    """A whole artifact for this machine, in `root`."""
    return echo_artifact(root, architecture=platform.machine())


def _code_of(root: Path, manifest: Manifest) -> str:
    with pytest.raises(LmiBuildError) as caught:
        load_engine(root, manifest)
    assert caught.value.hints
    return caught.value.code


def _with_handler(root: Path, manifest: Manifest, text: str) -> Manifest:
    from packed import entry

    (root / "model.py").write_text(text)
    files: list[FileEntry] = [
        entry(root, "model.py") if row.path == "model.py" else row
        for row in manifest.files
    ]
    return replace(manifest, files=tuple(files))


def test_engine_is_the_shipped_one(root: Path, manifest: Manifest) -> None:
    """The handler in the folder answers, with its own exceptions."""
    loaded = load_engine(root, manifest)

    assert loaded.engine.decode(loaded.engine.encode("abc")) == "abc"
    with pytest.raises(loaded.bound_exceeded):
        loaded.engine.generate("x" * 65, {})
    assert loaded.module.__file__ == str(root / "model.py")


def test_changed_code_never_runs(root: Path, manifest: Manifest) -> None:
    """Its hash is checked before it is executed."""
    evil = root / "was-here"
    (root / "model.py").write_text(f"open({str(evil)!r}, 'w')")

    assert _code_of(root, manifest) == "verify.file-changed"
    assert not evil.exists()


def test_artifact_of_another_processor_is_refused(
    root: Path, manifest: Manifest
) -> None:
    """An engine for another architecture is not tried."""
    other = replace(
        manifest, compatibility={**manifest.compatibility, "architecture": "s390x"}
    )

    assert _code_of(root, other) == "package.wrong-architecture"


def test_missing_runtime_is_named_with_its_version(
    root: Path, manifest: Manifest
) -> None:
    """The command that installs it stands in the hint."""
    (root / "requirements.txt").write_text("no-such-runtime==1.2.3\n")
    with pytest.raises(ToolMissing) as caught:
        load_engine(root, manifest)

    assert caught.value.code == "package.runtime-missing"
    assert caught.value.hints == ("pip install 'no-such-runtime==1.2.3'",)


def test_other_versions_are_reported(root: Path, manifest: Manifest) -> None:
    """A different version may work; it is said, not hidden."""
    (root / "requirements.txt").write_text("pytest==0.0.1\n")

    (pin,) = load_engine(root, manifest).drift
    assert pin.startswith("pytest ")
    assert pin.endswith("(artifact: 0.0.1)")


def test_an_engine_for_a_gpu_is_tried_without_one(
    root: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin for CPUs has the same modules; that it is another package is said."""
    (root / "requirements.txt").write_text("onnxruntime-gpu==1.31.1\n")
    found = {"onnxruntime": "1.31.1"}

    def version(name: str) -> str:
        if name not in found:
            raise metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(metadata, "version", version)
    (pin,) = load_engine(root, manifest).drift
    assert pin == "onnxruntime 1.31.1 (artifact: onnxruntime-gpu 1.31.1)"
    found.clear()
    with pytest.raises(ToolMissing, match=r"onnxruntime-gpu==1\.31\.1"):
        load_engine(root, manifest)


def test_a_version_that_binds_is_refused(root: Path, manifest: Manifest) -> None:
    """Both versions are named, and the handler's code is not run."""
    (root / "requirements.txt").write_text("pytest==0.0.1\n")
    (root / "model.py").write_text("never read")
    bound = {**manifest.compatibility, "pytest": "0.0.1"}
    with pytest.raises(ToolMissing) as caught:
        load_engine(root, replace(manifest, compatibility=bound))

    assert caught.value.code == "package.wrong-version"
    assert f"pytest {pytest.__version__} (artifact: 0.0.1)" in caught.value.message
    assert caught.value.hints[0] == "pip install 'pytest==0.0.1'"


def test_an_engine_for_other_instructions_is_unsupported(
    root: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is whole: exit 3, both names, and what to write; not `verify`."""
    engine = {"cpu_flags": ["avx512f", "avx512vl"], "isa": "avx512"}
    for name in aotinductor.ENGINE_FILES:
        (root / name).write_text(json.dumps(engine))
    flags = root / "cpuinfo"
    flags.write_text("flags : fpu avx2 fma\n")
    monkeypatch.setattr(aotinductor, "CPU_FILE", flags)
    text = (
        "from lmi_build.package.handlers.aotinductor import *\n"
        "from lmi_build.package.handlers.generation import *\n"
        "class Engine:\n def __init__(s, r): Session(r, {})\n"
    )
    with pytest.raises(Unsupported) as caught:
        load_engine(root, _with_handler(root, manifest, text))

    assert caught.value.code == "package.wrong-machine"
    assert caught.value.exit_code == 3
    for word in ("`avx512`", "has avx2", "no avx512f, avx512vl"):
        assert word in caught.value.message
    (hint,) = caught.value.hints
    assert hint.startswith("set `compile.options.isa: avx2` and build again, or")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("syntax error here", "package.handler-broken"),
        ("import no_such_module", "package.handler-broken"),
        ("x = 1", "package.engine-broken"),
        ("class Engine:\n def __init__(s, r): 1/0", "package.engine-broken"),
    ],
)
def test_broken_handlers_are_named(
    root: Path, manifest: Manifest, text: str, code: str
) -> None:
    """A handler that fails is an error with a code, never a traceback."""
    assert _code_of(root, _with_handler(root, manifest, text)) == code


@pytest.mark.parametrize("port", [-1, 65536, 1 << 40])
def test_ports_out_of_range_are_refused(port: int) -> None:
    """The range and a port that works are in the message."""
    with pytest.raises(UsageInvalid) as caught:
        listen("127.0.0.1", port)

    assert caught.value.code == "server.bad-port"
    assert "65535" in caught.value.message


@pytest.mark.parametrize("host", ["203.0.113.1", "256.1.1.1", ""])
def test_foreign_addresses_are_refused(host: str) -> None:
    """An address that is not of this machine cannot be listened on."""
    with pytest.raises(UsageInvalid) as caught:
        listen(host, 0)
    assert caught.value.code == "server.cannot-listen"


def test_broken_artifacts_are_not_served(root: Path, manifest: Manifest) -> None:
    """Every hash is checked before the first request."""
    assert manifest.name == "sample"
    (root / "README.md").write_text("changed")
    with pytest.raises(LmiBuildError) as caught:
        serve(root, "127.0.0.1", 0)

    assert caught.value.code == "verify.file-changed"

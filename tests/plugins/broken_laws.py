"""Each law fails for the one fault that it is about, and for no other."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pytest
from broken_echo import BACKENDS, HANDLERS, MANIFESTS
from heavy_echo import Heavy

from lmi_build import registry
from lmi_build.digest import digest_file
from lmi_build.package import engine
from lmi_build.testing import (
    BACKEND_LAWS,
    ENGINE_LAWS,
    SESSION_LAWS,
    broken_laws,
    built_here,
    make_tiny_llama,
)
from lmi_build.values.manifest import FileEntry
from lmi_build.verify.integrity import read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.testing import Built

TOLD_OTHERWISE = {
    "builds-are-the-same",
    "other-processors-are-refused",
    "other-versions-are-told",
}
# Its module is heavy, so the others' may not import it.
FAULTY = {**BACKENDS, "provider-is-light": Heavy()}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An artifact that obeys every law."""
    place = tmp_path_factory.mktemp("built")
    model = make_tiny_llama(place / "model")
    return built_here(registry.backend("echo"), model, place)


def changed(sound: Built, place: Path, path: str, data: bytes) -> Built:
    """The artifact with another file, which its manifest names."""
    root = place / "changed"
    shutil.copytree(sound.root, root, copy_function=shutil.copyfile)
    (root / path).write_bytes(data)
    manifest = read_manifest(root)
    entry = FileEntry(path=path, size=len(data), digest=digest_file(root / path))
    files = (entry if row.path == path else row for row in manifest.files)
    written = replace(manifest, files=tuple(files)).to_bytes()
    (root / "manifest.json").write_bytes(written)
    return replace(sound, root=root, again=root)


def edited(sound: Built, place: Path, block: str, values: dict[str, Any]) -> Path:
    """A copy of the artifact with other values in one block of its manifest."""
    root = place / "edited"
    shutil.copytree(sound.root, root, copy_function=shutil.copyfile)
    manifest = read_manifest(root)
    change: Any = {block: {**getattr(manifest, block), **values}}
    written = replace(manifest, **change).to_bytes()
    (root / "manifest.json").write_bytes(written)
    return root


def test_every_law_has_a_fault() -> None:
    """No law is only ever seen to hold."""
    names = [law.name for law in BACKEND_LAWS] + [law.name for law in ENGINE_LAWS]

    assert sorted(names) == sorted({*FAULTY, *HANDLERS, *MANIFESTS, *TOLD_OTHERWISE})


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_backend_breaks_its_law(name: str) -> None:
    assert broken_laws(BACKEND_LAWS, FAULTY[name]) == (name,)


def test_a_sound_artifact_breaks_none(sound: Built) -> None:
    assert broken_laws(ENGINE_LAWS, sound) == ()


@pytest.mark.parametrize("name", HANDLERS)
def test_a_faulty_engine_breaks_its_law(
    name: str, sound: Built, tmp_path: Path
) -> None:
    old, new = HANDLERS[name]
    text = (sound.root / "model.py").read_text(encoding="utf-8")
    assert old in text
    faulty = changed(sound, tmp_path, "model.py", text.replace(old, new).encode())

    assert broken_laws(ENGINE_LAWS, faulty) == (name,)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_faulty_manifest_breaks_its_law(
    name: str, sound: Built, tmp_path: Path
) -> None:
    block, key, value = MANIFESTS[name]
    root = edited(sound, tmp_path, block, {key: value})
    faulty = replace(sound, root=root, again=root)

    assert broken_laws(ENGINE_LAWS, faulty) == (name,)


def test_an_engine_that_says_no_version_is_seen(sound: Built, tmp_path: Path) -> None:
    faulty = changed(sound, tmp_path, "requirements.txt", b"")

    assert broken_laws(ENGINE_LAWS, faulty) == ("other-versions-are-told",)


def test_a_loader_that_looks_at_no_version_is_seen(
    sound: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that is bound to NumPy's version obeys, until nobody looks."""
    binding = {"numpy": metadata.version("numpy")}
    bound = replace(sound, root=edited(sound, tmp_path, "compatibility", binding))

    assert broken_laws(SESSION_LAWS, bound) == ()
    monkeypatch.setattr(engine, "_check_requirements", lambda _root, _bound: ())
    assert broken_laws(SESSION_LAWS, bound) == ("other-versions-are-told",)


def test_builds_that_differ_are_seen(sound: Built, tmp_path: Path) -> None:
    """`varying` would have to name the file."""
    other = changed(sound, tmp_path, "engine/config.json", b"{}")
    faulty = replace(sound, again=other.root)

    assert broken_laws(ENGINE_LAWS, faulty) == ("builds-are-the-same",)


def test_a_loader_that_looks_at_no_processor_is_seen(
    sound: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_check_machine", lambda _manifest: None)

    assert broken_laws(ENGINE_LAWS, sound) == ("other-processors-are-refused",)

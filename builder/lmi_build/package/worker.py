"""
The package stage: lays a model, a checkpoint and an engine out as one artifact.

Order of work, so that every later file can name the earlier ones: engine, handler
and settings, tokenizer, papers, `layers.json`, `provenance.json`, the
archive if one is asked for, and `manifest.json` last.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from lmi_build import __version__
from lmi_build.backends.trtllm.tokenizer_config import NAME as TOKENIZER_CONFIG
from lmi_build.backends.trtllm.tokenizer_config import served_tokenizer_config
from lmi_build.checkpoint.layers import (
    LAYERS_NAME,
    layers_of,
    layers_summary,
    layers_to_bytes,
)
from lmi_build.checkpoint.ledger import LEDGER_NAME, read_ledger
from lmi_build.digest import canonical_json, digest_bytes, digest_file
from lmi_build.errors import SourceInvalid, StageFailed
from lmi_build.events import StageProgress
from lmi_build.package.archive import write_archive
from lmi_build.package.handler_files import handler_source
from lmi_build.package.papers import model_card
from lmi_build.package.place import place
from lmi_build.package.properties import PROPERTIES_NAME, render_properties
from lmi_build.package.provenance import PROVENANCE_NAME, provenance_statement
from lmi_build.values.manifest import (
    ARCHIVE_NAME,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lmi_build.digest import JSONValue
    from lmi_build.events import Emit
    from lmi_build.spi import Job

SETTINGS_NAME = "lmi_build.json"
HANDLER_NAME = "model.py"
REQUIREMENTS_NAME = "requirements.txt"
COVERAGE_NAME = "coverage.json"

# What a tokenizer of the Hugging Face family may be made of; taken as present.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_PAPER_PATTERNS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "README.md")


def run(job: Job, emit: Emit) -> None:
    """
    Fill `job.out` with the artifact.

    Raises:
        SourceInvalid: `package.no-tokenizer` or `package.no-engine`.
        StageFailed: `package.handler-changed` when the installed handler is not the
            one that was planned.
    """
    params = cast("dict[str, Any]", job.params)
    out = job.out
    serving = params["serving"]
    _lay_engine(job.inputs["engine"], out / serving["engine_dir"])
    _lay_handler(serving, out)
    _lay_tokenizer(
        job.inputs["checkpoint"],
        job.inputs["model"],
        out / serving["tokenizer_dir"],
        further=serving["model_files"],
    )
    _name_tokenizer(out / serving["tokenizer_dir"], serving["tokenizer_class"])
    _lay_papers(job.inputs["model"], out, params)
    ledger = _lay_layers(job.inputs["checkpoint"], out)
    entries = _list_files(job, emit)
    statement = provenance_statement(params, entries, version=__version__)
    _write(out / PROVENANCE_NAME, statement)
    entries.append(_entry(out, out / PROVENANCE_NAME))
    if params["format"] == "tar.gz":
        # Without the manifest, which names the archive like every other file.
        write_archive(out, sorted(e.path for e in entries), out / ARCHIVE_NAME)
        entries.append(_entry(out, out / ARCHIVE_NAME))
    manifest = make_manifest(params, entries, ledger=ledger)
    _write(out / MANIFEST_NAME, manifest.to_bytes())


def make_manifest(
    params: Mapping[str, JSONValue],
    entries: list[FileEntry],
    *,
    ledger: Mapping[str, JSONValue] | None,
) -> Manifest:
    """Join what was planned with what lies there."""
    head = cast("dict[str, Any]", dict(params))
    settings = (
        "settings",
        "handler_digest",
        "files",
        "model_files",
        "tokenizer_class",
    )
    serving = {k: v for k, v in head["serving"].items() if k not in settings}
    return Manifest(
        **{**head, "serving": serving},
        ledger=ledger,
        files=tuple(sorted(entries)),
    )


def _lay_layers(checkpoint: Path, out: Path) -> dict[str, JSONValue] | None:
    """
    Write `layers.json`, and say in a few numbers what the ledger holds.

    Returns:
        Digest and number of rows of the ledger, and the totals of its layers; None
        when there is no ledger, because nothing was quantized.

    Raises:
        SourceInvalid: `package.ledger-unreadable`.
    """
    path = checkpoint / LEDGER_NAME
    if not path.is_file():
        return None
    try:
        rows = read_ledger(checkpoint)
        layers = layers_of(rows, coverage=_read_coverage(checkpoint))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceInvalid(
            f"{LEDGER_NAME} or {COVERAGE_NAME} of the checkpoint is not a table of"
            f" tensors: {error}",
            code="package.ledger-unreadable",
            hints=("run `lmi-build cache verify`, then build again",),
        ) from error
    _write(out / LAYERS_NAME, layers_to_bytes(layers))
    return {
        "digest": digest_file(path),
        "num_rows": len(rows),
        "layers": layers_summary(layers),
    }


def _read_coverage(checkpoint: Path) -> dict[str, Any] | None:
    """How much text each layer saw; None where no text was needed."""
    path = checkpoint / COVERAGE_NAME
    return json.loads(path.read_bytes()) if path.is_file() else None


def _lay_engine(engine: Path, to: Path) -> None:
    files = [path for path in sorted(engine.rglob("*")) if path.is_file()]
    if not files:
        raise SourceInvalid(
            "the compile stage left an empty engine folder",
            code="package.no-engine",
            hints=("run `lmi-build cache verify`, then build again",),
        )
    for path in files:
        place(path, to / path.relative_to(engine))


def _lay_handler(serving: Mapping[str, Any], out: Path) -> None:
    """What tells DJL Serving how to answer, and the backend's own small texts."""
    if serving["properties"]:
        _write(out / PROPERTIES_NAME, render_properties(serving["properties"]))
    if serving["settings"]:
        _write(out / SETTINGS_NAME, _pretty(serving["settings"]))
    for path, text in serving["files"].items():
        _write(out / path, text.encode())
    if serving["handler"]:
        _lay_own_handler(serving, out)


def _lay_own_handler(serving: Mapping[str, Any], out: Path) -> None:
    """`model.py` and the packages it needs."""
    source = handler_source(serving["handler"])
    found = digest_bytes(source)
    if found != serving["handler_digest"]:
        raise StageFailed(
            f"handler `{serving['handler']}` is {found}, the plan was made with"
            f" {serving['handler_digest']}",
            code="package.handler-changed",
            hints=("lmi-build was changed since `plan`: make the plan again",),
        )
    _write(out / HANDLER_NAME, source)
    lines = "".join(f"{line}\n" for line in sorted(serving["requirements"]))
    _write(out / REQUIREMENTS_NAME, lines.encode())


def _lay_tokenizer(
    checkpoint: Path, model: Path, out: Path, *, further: Iterable[str]
) -> None:
    for name in (*_TOKENIZER_FILES, *further):
        source = next(
            (d / name for d in (checkpoint, model) if (d / name).is_file()), None
        )
        # What the engine's own folder holds under that name stays.
        if source is not None and not (out / name).exists():
            place(source, out / name)
    if not (out / "tokenizer.json").is_file():
        raise SourceInvalid(
            "the model has no tokenizer.json, which the server reads",
            code="package.no-tokenizer",
            hints=(
                (
                    "convert it once: `AutoTokenizer.from_pretrained(MODEL)"
                    ".save_pretrained(MODEL)` writes tokenizer.json"
                ),
            ),
        )


def _name_tokenizer(folder: Path, needed: str) -> None:
    """Let the server's transformers find a class for the tokenizer."""
    if not needed:
        return
    path = folder / TOKENIZER_CONFIG
    data = path.read_bytes() if path.is_file() else None
    named = served_tokenizer_config(data, only_unknown=needed == "known")
    if named is not None:
        # The file may be shared with the store: another takes its place.
        path.unlink(missing_ok=True)
        _write(path, named)


def _lay_papers(model: Path, out: Path, params: Mapping[str, Any]) -> None:
    for pattern in _PAPER_PATTERNS:
        for path in sorted(model.glob(pattern)):
            if path.is_file():
                place(path, out / path.name)
    if not (out / "README.md").exists():
        _write(out / "README.md", model_card(params))


def _list_files(job: Job, emit: Emit) -> list[FileEntry]:
    paths = sorted(path for path in job.out.rglob("*") if path.is_file())
    entries = []
    for done, path in enumerate(paths, start=1):
        entries.append(_entry(job.out, path))
        emit(StageProgress(stage=job.stage, done=done, total=len(paths), unit="files"))
    return entries


def _entry(root: Path, path: Path) -> FileEntry:
    return FileEntry(
        path=path.relative_to(root).as_posix(),
        size=path.stat().st_size,
        digest=digest_file(path),
    )


def _pretty(value: JSONValue) -> bytes:
    plain = json.loads(canonical_json(value))
    return (json.dumps(plain, sort_keys=True, indent=2) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

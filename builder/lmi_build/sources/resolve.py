"""
Pin a model down: recipe section in, `ModelFacts` out.

Light on purpose: it runs in the planner's process, reads headers and never a weight
except to hash a local file once. `huggingface_hub` and `boto3` are imported only for
the sources that need them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.errors import SourceInvalid
from lmi_build.sources.cache import FactsCache
from lmi_build.sources.local import resolve_folder, resolve_gguf
from lmi_build.sources.selection import require_tokenizer
from lmi_build.values.stage import Estimate

if TYPE_CHECKING:
    from lmi_build.digest import JSONValue
    from lmi_build.spi import Params
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import ModelSpec
    from lmi_build.values.settings import Settings

# Entry of the fetch stage, and its salt: raised when fetch writes other bytes for the
# same parameters.
FETCH_ENTRY = "lmi_build.sources.fetch:run"
FETCH_SALT = 1

_REPO = re.compile(r"[A-Za-z0-9](?:[\w.-]*\w)?/[A-Za-z0-9](?:[\w.-]*\w)?\Z", re.ASCII)
_MAX_REPO_LEN = 96
_DTYPES = ("auto", "float32", "float16", "bfloat16")

# Peak of the worker that copies or downloads, measured, and of the one that converts:
# numpy, tokenizers and one chunk of weights.
_COPY_RAM_BYTES = 80 << 20
_CONVERT_RAM_BYTES = 320 << 20


def source_kind(source: str, *, base: Path) -> str:
    """
    Which kind of place a source names: `s3`, `gguf`, `folder` or `hub`.

    Args:
        source: What the recipe says.
        base: Folder of the recipe.

    Raises:
        SourceInvalid: `source.bad-name`: it is none of these.
    """
    if source.startswith("s3://"):
        return "s3"
    path = local_path(source, base=base)
    looks_local = source.startswith(("/", "./", "../", "~")) or source in {".", ".."}
    if source.lower().endswith(".gguf"):
        return "gguf"
    if source and (looks_local or path.is_dir()):
        return "folder"
    if len(source) <= _MAX_REPO_LEN and _REPO.match(source) and ".." not in source:
        return "hub"
    raise SourceInvalid(
        f"`{source}` is not a model: no such folder, and a hub repository is written"
        " `owner/name`",
        code="source.bad-name",
        hints=("write `owner/name`, `./folder`, `file.gguf` or `s3://bucket/prefix`",),
    )


def local_path(source: str, *, base: Path) -> Path:
    """A source as a path: `~` is the home, a relative one starts at the recipe."""
    try:
        path = Path(source).expanduser()
    except RuntimeError:
        path = Path(source)
    return base / path


def resolve_model(
    spec: ModelSpec,
    *,
    settings: Settings,
    base: Path,
    hashed: bool = True,
    served: bool = True,
) -> ModelFacts:
    """
    Learn everything the planner may know about a model.

    Args:
        spec: The recipe's `model` section.
        settings: Cache folder, endpoint, token, whether the network may be used.
        base: Folder of the recipe, for relative paths.
        hashed: Whether the weights of a local folder are named by their content. To
            count their bytes their headers are enough, and reading gigabytes is not.
        served: Whether it must have what serving takes, a tokenizer; sizes need none.

    Raises:
        SourceInvalid: The model is missing, broken or refused.
        Unsupported: It cannot be used as asked.
        RemoteFailed: The hub or S3 refused or vanished.
    """
    if spec.dtype not in _DTYPES:
        raise SourceInvalid(
            f"`model.dtype` is `{spec.dtype}`",
            code="source.bad-dtype",
            hints=(f"write one of {', '.join(_DTYPES)}",),
        )
    facts = _resolve(spec, settings=settings, base=base, hashed=hashed)
    if served and facts.kind != "gguf":
        require_tokenizer((file.path for file in facts.files), source=spec.source)
    return facts


def _resolve(
    spec: ModelSpec, *, settings: Settings, base: Path, hashed: bool
) -> ModelFacts:
    """Facts of a model wherever it lies."""
    kind = source_kind(spec.source, base=base)
    cache = FactsCache(settings.cache_dir / "facts")
    if kind == "hub":
        from lmi_build.sources.hub import resolve_hub

        return resolve_hub(spec, settings=settings, cache=cache)
    if kind == "s3":
        from lmi_build.sources.s3 import resolve_s3

        return resolve_s3(spec, settings=settings, cache=cache)
    path = local_path(spec.source, base=base).absolute()
    if kind == "gguf":
        _expect(path.is_file(), spec.source, path, what="file")
        return resolve_gguf(path, spec=spec, cache=cache)
    _expect(path.is_dir(), spec.source, path, what="folder")
    return resolve_folder(path, spec=spec, cache=cache, hashed=hashed)


def _expect(found: bool, source: str, path: Path, *, what: str) -> None:  # noqa: FBT001
    if found:
        return
    beside = sorted(p.name for p in path.parent.glob("*.gguf"))[:3]
    near = f"; `{path.parent}` holds {', '.join(beside)}" if beside else ""
    raise SourceInvalid(
        f"`{source}` is not there: no {what} `{path}`{near}",
        code="source.not-found",
        hints=(
            "correct `model.source`; a relative path starts at the recipe's folder",
        ),
    )


def fetch_stage_params(facts: ModelFacts, spec: ModelSpec) -> Params:
    """
    What decides every byte that fetch writes; this goes into the key.

    No location, no revision and no name of the source: the same files from elsewhere
    are the same model.
    """
    files: list[JSONValue] = [[f.path, f.digest, f.size] for f in facts.files]
    converts = facts.kind == "gguf"
    return {
        "kind": facts.kind,
        "files": files,
        "dtype": facts.dtype if converts or spec.dtype != "auto" else "keep",
        "trust_remote_code": spec.trust_remote_code,
    }


def fetch_settings(facts: ModelFacts, settings: Settings) -> Params:
    """Where fetch finds those files; changes no byte, stays out of the key."""
    return {
        "location": facts.location,
        "revision": facts.revision,
        "endpoint": settings.hf_endpoint,
        "offline": settings.offline,
    }


def fetch_secrets(facts: ModelFacts) -> tuple[str, ...]:
    """The groups of secrets that fetch may see."""
    if facts.location.startswith("s3://"):
        return ("aws",)
    return ("hub",) if facts.kind == "hub" else ()


def fetch_distributions(kind: str, *, dtype: str = "auto") -> tuple[str, ...]:
    """
    Packages whose versions can change a byte of what fetch writes.

    Copies are checked against digests, so only conversions depend on a library.

    Args:
        kind: Of the facts.
        dtype: Of the recipe; a cast needs numpy.
    """
    if kind == "gguf":
        return ("gguf", "numpy", "tokenizers")
    return () if dtype == "auto" else ("numpy",)


def estimate_fetch(facts: ModelFacts, spec: ModelSpec) -> Estimate:
    """What fetch will cost."""
    from lmi_build.values.model import DTYPE_BITS

    remote = facts.kind == "hub" or facts.location.startswith("s3://")
    converts = facts.kind == "gguf" or spec.dtype != "auto"
    weights = sum(
        t.num_elements * DTYPE_BITS.get(t.dtype, 32) // 8 for t in facts.tensors
    )
    others = sum(
        f.size for f in facts.files if not f.path.endswith((".safetensors", ".gguf"))
    )
    disk = weights + others if converts else facts.fetch_bytes
    return Estimate(
        download_bytes=facts.fetch_bytes if remote else 0,
        disk_bytes=disk,
        scratch_bytes=facts.fetch_bytes if remote and converts else 0,
        ram_bytes=_CONVERT_RAM_BYTES if converts else _COPY_RAM_BYTES,
    )

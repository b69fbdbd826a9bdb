"""
Turn a readable model folder, wherever it lies, into `ModelFacts`.

Two steps, so that the first can be cached with the source's identity: `distil` reads
configuration and headers; `assemble` applies what the recipe asks for.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from lmi_build.checkpoint.formats.modelopt import (
    HF_QUANT_CONFIG,
    METHOD,
    modelopt_entries,
)
from lmi_build.errors import SourceInvalid, Unsupported
from lmi_build.sources.consistency import check_consistency
from lmi_build.sources.prequantized import FROM_FILE, QUANTIZATION
from lmi_build.sources.safetensors_header import read_header_at
from lmi_build.sources.selection import CONFIG, INDEX, check_name, select_files
from lmi_build.values.model import (
    FileFact,
    ModelFacts,
    TensorFact,
    geometry_from_config,
)

if TYPE_CHECKING:
    from lmi_build.values.recipe import ModelSpec

# No configuration or index comes near; more is damage or malice.
_MAX_JSON_BYTES = 64 << 20
FLOAT_DTYPES = ("float64", "float32", "float16", "bfloat16")


class ModelFolder(Protocol):
    """A folder of files that can be read in parts."""

    @property
    def source(self) -> str:
        """How to call it in messages."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of every file, by its path relative to the folder."""

    def read_at(self, name: str, offset: int, count: int) -> bytes:
        """Up to `count` bytes of a file."""


def distil(folder: ModelFolder) -> dict[str, Any]:
    """
    Read configuration and headers of a folder.

    Returns:
        A JSON document: `config`, `weights`, `others`, `code`, `auto_map` (file to its
        references) and `tensors` (name, dtype, shape, file).
    """
    indexed = _indexed_files(folder)
    selection = select_files(folder.sizes, source=folder.source, indexed=indexed)
    for name in (*selection.weights, *selection.others, *selection.code):
        check_name(name, source=folder.source)
    config = _with_modelopt(folder, _read_json(folder, CONFIG))
    auto_map = {
        name: document["auto_map"]
        for name in (CONFIG, "tokenizer_config.json")
        if name in folder.sizes
        and (document := _read_json(folder, name)).get("auto_map")
    }
    tensors = [
        [entry.name, entry.dtype, list(entry.shape), name]
        for name in selection.weights
        for entry in read_header_at(
            _reader(folder, name), size=folder.sizes[name], file=name
        ).tensors.values()
    ]
    _check_tensors(folder, tensors, indexed=indexed)
    return {
        "config": config,
        "weights": list(selection.weights),
        "others": list(selection.others),
        "code": list(selection.code),
        "auto_map": auto_map,
        "tensors": sorted(tensors),
    }


def _reader(folder: ModelFolder, name: str) -> Callable[[int, int], bytes]:
    def read_at(offset: int, count: int) -> bytes:
        return folder.read_at(name, offset, count)

    return read_at


def _read_json(folder: ModelFolder, name: str) -> dict[str, Any]:
    size = folder.sizes[name]
    if size > _MAX_JSON_BYTES:
        raise SourceInvalid(
            f"`{name}` of `{folder.source}` has {size:,} bytes, at most"
            f" {_MAX_JSON_BYTES:,} are read",
            code="source.bad-config",
            hints=("fetch the file again; it is not a configuration",),
        )
    try:
        document = json.loads(folder.read_at(name, 0, size).decode())
    except (ValueError, RecursionError) as error:
        raise SourceInvalid(
            f"`{name}` of `{folder.source}` is not JSON: {error}",
            code="source.bad-config",
            hints=("fetch the file again, or correct it",),
        ) from error
    if not isinstance(document, dict):
        raise SourceInvalid(
            f"`{name}` of `{folder.source}` is not a JSON object",
            code="source.bad-config",
            hints=("fetch the file again, or correct it",),
        )
    return document


def _with_modelopt(folder: ModelFolder, config: dict[str, Any]) -> dict[str, Any]:
    """Add what modelopt before 0.29 wrote into a file of its own alone."""
    if HF_QUANT_CONFIG not in folder.sizes or config.get(QUANTIZATION):
        return config
    entries = modelopt_entries(_read_json(folder, HF_QUANT_CONFIG))
    entry = {**entries, "quant_method": METHOD, FROM_FILE: HF_QUANT_CONFIG}
    return {**config, QUANTIZATION: entry}


def _indexed_files(folder: ModelFolder) -> set[str] | None:
    if INDEX not in folder.sizes:
        return None
    weight_map = _read_json(folder, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        raise SourceInvalid(
            f"`{INDEX}` of `{folder.source}` has no `weight_map` of file names",
            code="source.bad-config",
            hints=("fetch the file again",),
        )
    return {check_name(n, source=folder.source) for n in weight_map.values()}


def _check_tensors(
    folder: ModelFolder, tensors: list[list[Any]], *, indexed: set[str] | None
) -> None:
    counts = Counter(row[0] for row in tensors)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise SourceInvalid(
            f"`{folder.source}` holds {len(twice)} tensors in more than one file,"
            f" first `{twice[0]}`",
            code="source.bad-weights",
            hints=("keep one set of weights in the folder",),
        )
    if not tensors:
        raise SourceInvalid(
            f"`{folder.source}` holds no tensors",
            code="source.no-weights",
            hints=("name the folder that holds the weights",),
        )
    if indexed is None:
        return
    places = {row[0]: row[3] for row in tensors}
    listed: dict[str, str] = _read_json(folder, INDEX)["weight_map"]
    wrong = sorted(name for name, file in listed.items() if places.get(name) != file)
    if wrong:
        raise SourceInvalid(
            f"`{INDEX}` of `{folder.source}` puts `{wrong[0]}` in"
            f" `{listed[wrong[0]]}`, which does not hold it"
            f" ({len(wrong)} such tensors)",
            code="source.bad-weights",
            hints=("fetch the weights and their index from one revision",),
        )


def assemble(
    folder: ModelFolder,
    distilled: Mapping[str, Any],
    *,
    kind: str,
    location: str,
    revision: str,
    spec: ModelSpec,
    digest: Callable[[str], str],
) -> ModelFacts:
    """
    Facts of a folder under the recipe's wishes.

    Args:
        folder: Where the sizes come from.
        distilled: What `distil` made of it, perhaps long ago.
        kind: `folder`, `hub` or `s3`.
        location: What fetch reads.
        revision: Full commit, or empty.
        spec: The recipe's section.
        digest: Identity of one file's content.

    Raises:
        SourceInvalid: `source.remote-code`, `source.bad-config`,
            `source.config-mismatch`.
        Unsupported: `source.cast`.
    """
    config = distilled["config"]
    wanted = [*distilled["weights"], *distilled["others"]]
    wanted += _remote_code(folder.source, distilled, spec)
    dtype, tensors = _cast_tensors(folder.source, distilled, spec)
    try:
        geometry = geometry_from_config(config)
    except ValueError as error:
        raise SourceInvalid(
            f"`config.json` of `{folder.source}` does not describe a decoder: {error}",
            code="source.bad-config",
            hints=("name a decoder-only language model",),
        ) from error
    check_consistency(folder.source, config=config, geometry=geometry, tensors=tensors)
    sizes = folder.sizes
    return ModelFacts(
        kind=kind,
        source=spec.source,
        location=location,
        revision=revision,
        geometry=geometry,
        config=config,
        files=tuple(
            FileFact(path=name, size=sizes[name], digest=digest(name))
            for name in sorted(wanted)
        ),
        tensors=tensors,
        dtype=dtype,
        num_skipped_bytes=sum(sizes.values()) - sum(sizes[n] for n in wanted),
    )


def _remote_code(
    source: str, distilled: Mapping[str, Any], spec: ModelSpec
) -> list[str]:
    references = sorted(_references(distilled["auto_map"]))
    if spec.trust_remote_code:
        foreign = [r for r in references if "--" in r]
        files = {f"{r.split('.')[0]}.py" for r in references if "--" not in r}
        missing = sorted(files - set(distilled["code"]))
        if foreign or missing:
            what = foreign[0] if foreign else missing[0]
            raise SourceInvalid(
                f"`{source}` asks for code outside of it: `{what}`",
                code="source.remote-code",
                hints=(
                    (
                        "copy the code's files beside `config.json` and name them"
                        " there, so that they can be hashed"
                    ),
                ),
            )
        return list(distilled["code"])
    if references:
        files = {f"{r.split('--')[-1].split('.')[0]}.py" for r in references}
        raise SourceInvalid(
            f"`{source}` brings code of its own ({', '.join(sorted(files))}), which is"
            " not run unless the recipe trusts it",
            code="source.remote-code",
            hints=(
                (
                    "read those files, then set `model.trust_remote_code: true` and pin"
                    " `model.revision` to a full commit"
                ),
            ),
        )
    return []


def _references(value: Any) -> set[str]:
    """Every `module.Class` below an `auto_map`, whatever its nesting."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return set().union(*(_references(item) for item in value))
    return set()


def _cast_tensors(
    source: str, distilled: Mapping[str, Any], spec: ModelSpec
) -> tuple[str, tuple[TensorFact, ...]]:
    rows = distilled["tensors"]
    facts = [
        TensorFact(name=name, dtype=dtype, shape=tuple(shape), file=file)
        for name, dtype, shape, file in rows
    ]
    weight: Counter[str] = Counter()
    for fact in facts:
        weight[fact.dtype] += fact.num_elements
    # A tie is broken by name, so that it does not depend on the order of files.
    dominant = max(sorted(weight), key=lambda dtype: weight[dtype])
    if spec.dtype == "auto":
        return dominant, tuple(facts)
    if distilled["config"].get("quantization_config") or dominant not in FLOAT_DTYPES:
        raise Unsupported(
            f"`{source}` is already quantized ({dominant}); it cannot become"
            f" {spec.dtype}",
            code="source.cast",
            hints=("set `model.dtype: auto`, or name the model's float repository",),
        )
    cast = [
        TensorFact(
            name=fact.name,
            dtype=spec.dtype if fact.dtype in FLOAT_DTYPES else fact.dtype,
            shape=fact.shape,
            file=fact.file,
        )
        for fact in facts
    ]
    return spec.dtype, tuple(cast)

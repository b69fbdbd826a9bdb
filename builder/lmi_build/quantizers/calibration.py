"""
Which text calibrates: the built-in one, and how any of them enters a stage's key.

Light at import: the planner asks here; only workers read rows (`calibration_rows`) and
tokenize (`calibration_windows`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.digest import Digest, JSONValue, digest_bytes, digest_json
from lmi_build.errors import SourceInvalid
from lmi_build.values.dataset import PYTHON_DOCS, data_format

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.values.dataset import DatasetFacts
    from lmi_build.values.recipe import CalibrationSpec

# `format` of parameters whose text lies in files of the input `calibration`.
FILES = "files"
DOCUMENT_SEPARATOR = "\n\n"


def builtin_texts(*, held_out: bool) -> tuple[str, ...]:
    """
    The documentation topics that ship with Python itself.

    Sorted by name, topics with an even index calibrate and those with an odd index
    are held out, so that what is measured was never calibrated on. A few topics have
    the same text under two names; one that calibrates is never held out.
    """
    from pydoc_data.topics import topics

    names = sorted(topics)
    calibration = tuple(topics[name] for name in names[::2])
    if not held_out:
        return calibration
    return tuple(
        topics[name] for name in names[1::2] if topics[name] not in calibration
    )


def held_out_text() -> str:
    """Text for comparing models, never used to calibrate by `builtin:python-docs`."""
    return DOCUMENT_SEPARATOR.join(builtin_texts(held_out=True))


def calibration_digest(spec: CalibrationSpec) -> Digest:
    """
    Name the calibration text by its content, without tokenizing it.

    Args:
        spec: Of the recipe; a data set of files must be resolved.

    Raises:
        ValueError: It is not resolved.
    """
    if spec.dataset == PYTHON_DOCS:
        texts = builtin_texts(held_out=False)
        return digest_bytes(DOCUMENT_SEPARATOR.join(texts).encode())
    return digest_json([[f.path, f.digest, f.size] for f in _facts(spec).files])


def _facts(spec: CalibrationSpec) -> DatasetFacts:
    if spec.facts is None:
        raise ValueError(f"the data set {spec.dataset} is not resolved")
    return spec.facts


def calibration_params(spec: CalibrationSpec) -> dict[str, JSONValue]:
    """
    What every quantizer lowers a `calibration` section to.

    The text enters by digest. Where it lies is no parameter: files come as the input
    `calibration`, made by a stage of its own, and the built-in text is at hand.

    Raises:
        ValueError: The data set is not resolved.
    """
    params: dict[str, JSONValue] = {
        "format": PYTHON_DOCS if spec.dataset == PYTHON_DOCS else FILES,
        "digest": calibration_digest(spec),
        "num_samples": spec.num_samples,
        "max_seq_len": spec.max_seq_len,
        "seed": spec.seed,
        "chat_template": spec.chat_template,
    }
    if params["format"] == FILES:
        params["files"] = [fact.path for fact in _facts(spec).files]
    return params


def calibration_settings(spec: CalibrationSpec) -> dict[str, JSONValue]:
    """What the files are called at their source, for messages; changes no byte."""
    if spec.dataset == PYTHON_DOCS or spec.facts is None:
        return {}
    return {"calibration_names": list(spec.facts.names)}


def calibration_distributions(spec: CalibrationSpec) -> tuple[str, ...]:
    """Packages that reading this data set needs, beyond those of a quantizer."""
    found = {"jinja2", "transformers"} if spec.chat_template else set()
    files = spec.facts.files if spec.facts is not None else ()
    if any(data_format(fact.path) == "parquet" for fact in files):
        found.add("pyarrow")
    return tuple(sorted(found))


def check_vocabulary(highest: int, num_rows: int) -> None:
    """
    Refuse the tokens of another model's tokenizer.

    Args:
        highest: The largest token id.
        num_rows: Of the embedding.

    Raises:
        SourceInvalid: `calibration.tokenizer`, with token and rows.
    """
    if highest >= num_rows:
        raise SourceInvalid(
            f"the tokenizer makes token {highest}, the embedding has {num_rows} rows",
            code="calibration.tokenizer",
            hints=("use the `tokenizer.json` that belongs to this model",),
        )


def load_tokenizer(folder: Path) -> Any:
    """
    The model's own tokenizer, without limits on length.

    Raises:
        SourceInvalid: `calibration.tokenizer`.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise SourceInvalid(
            f"`{path}` is not a tokenizer: {error}",
            code="calibration.tokenizer",
            hints=("fetch the model with its `tokenizer.json`",),
        ) from error
    # Some files carry the limits of somebody's training run.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer

"""
The forms that text takes in a recipe: names, sources, data sets, variables.

Each function takes what the user wrote and returns it unchanged, or raises
pydantic's custom error with the code, the message and the way out.
"""

from __future__ import annotations

import re

from lmi_build.recipe.aws_forms import check_s3_uri
from lmi_build.recipe.form import fault, slug
from lmi_build.recipe.words import nearest, show
from lmi_build.text import join_words
from lmi_build.values.dataset import (
    BUILTIN_DATASETS,
    DATASET_SUFFIXES,
    data_format,
    parse_dataset,
)

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
SLUG_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
TARGET_PATTERN = r"^(cpu|cuda|ml\.[a-z0-9-]+\.[a-z0-9-]+)$"
IGNORE_PATTERN = r"^[A-Za-z0-9_.*]+$"

# The hub's own rule: one or two parts of at most 96 letters, digits, `-_.`.
_HUB_ID = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?\Z"
)
_HUB_URL = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/\s]+/[^/\s]+)"
)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,254}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

# SageMaker's CreateModel: at most 100 variables, 1024 characters in name and value.
_MAX_VARIABLES = 100
_MAX_VARIABLE_CHARS = 1024


def check_name(value: str) -> str:
    """A name becomes a folder and a part of S3 keys."""
    if re.match(NAME_PATTERN, value) and ".." not in value and "\n" not in value:
        return value
    raise fault(
        "recipe.name",
        f"`{show(value)}` is not a name: up to 63 of `a-z`, `0-9`, `.`, `_`, `-`, "
        "a letter or digit first, no `..`",
        f"write `{slug(value.replace('..', '-')) or 'my-model'}`",
    )


def source_kind(value: str) -> str:
    """`s3`, `gguf`, `folder` or `hub`, by the form of the text alone."""
    if value.startswith("s3://"):
        return "s3"
    if value.lower().endswith(".gguf"):
        return "gguf"
    if value.startswith(("/", "./", "../", "~")) or value in {".", ".."}:
        return "folder"
    return "hub"


def check_source(value: str) -> str:
    """A model's source is of exactly one of four forms."""
    code = "recipe.model-source"
    url = _HUB_URL.match(value)
    if url:
        raise fault(
            code, "a hub repository is named, not linked", f"write `{url.group(1)}`"
        )
    if "://" in value and not value.startswith("s3://"):
        scheme = show(value.partition("://")[0])
        raise fault(
            code,
            f"`{scheme}://` is no source of models",
            "write `owner/name` of a hub repository, a folder such as `./model`, "
            "an `s3://bucket/prefix` or a `.gguf` file",
        )
    if value.lower().endswith((".safetensors", ".bin", ".pt", ".pth", ".onnx")):
        raise fault(
            code,
            f"`{show(value)}` is one file of a model",
            "name the folder that holds `config.json` and the `.safetensors` files",
        )
    kind = source_kind(value)
    if kind == "s3":
        check_s3_uri(value, code)
    elif kind == "hub" and (not _HUB_ID.match(value) or ".." in value):
        raise fault(
            code,
            f"`{show(value)}` is neither `owner/name` of a hub repository nor a path",
            _source_hint(value),
        )
    return value


def _source_hint(value: str) -> str:
    squeezed = "".join(value.split())
    if squeezed != value and _HUB_ID.match(squeezed):
        return f"write `{squeezed}`"
    if not squeezed:
        return "write `owner/name`, a folder, an `s3://` prefix or a `.gguf` file"
    return f"write `./{show(value.lstrip('/'))}` if it is a folder"


def check_revision(value: str) -> str:
    """A branch, tag or commit."""
    if _REVISION.match(value) and ".." not in value:
        return value
    raise fault(
        "recipe.revision",
        f"`{show(value)}` is no branch, tag or commit",
        "write `main`, a tag, or the 40 digits of a commit",
    )


def check_dataset(value: str) -> str:
    """A calibration text: built in, a file, a hub data set or an S3 object."""
    code = "recipe.dataset"
    scheme = value.partition(":")[0] if ":" in value else ""
    if scheme == "builtin":
        if value in BUILTIN_DATASETS:
            return value
        raise fault(
            code,
            f"there is no built-in text `{show(value)}`",
            f"write {join_words(BUILTIN_DATASETS)}",
        )
    if scheme == "hub":
        return _check_hub_dataset(value, code)
    if scheme == "s3":
        check_s3_uri(value, code)
    elif scheme:
        raise fault(
            code,
            f"`{show(scheme)}:` is no source of calibration text",
            "write `builtin:python-docs`, a file, `hub:owner/name` or an `s3://` file",
        )
    if data_format(value):
        return value
    raise fault(
        code,
        f"`{show(value)}` is no text, JSON, CSV or Parquet file",
        f"write `hub:{show(value)}` for a hub data set, or a file that ends in "
        f"{join_words(DATASET_SUFFIXES)}"
        if _HUB_ID.match(value)
        else f"name a file that ends in {join_words(DATASET_SUFFIXES)}",
    )


def _check_hub_dataset(value: str, code: str) -> str:
    """A data set on the hub; what is in it is known when it is looked up."""
    try:
        parse_dataset(value)
    except ValueError as error:
        raise fault(code, f"`{show(value)}` names no data set", str(error)) from error
    return value


def check_ignore(value: str) -> str:
    """A module's name, or a pattern with `*`."""
    if re.fullmatch(IGNORE_PATTERN[1:-1], value):
        return value
    raise fault(
        "recipe.ignore",
        f"`{show(value)}` is no module name or `*` pattern",
        "write names such as `lm_head` or `model.layers.0.*`",
    )


def check_target(value: str) -> str:
    """`cpu`, `cuda` or an instance type."""
    if re.fullmatch(TARGET_PATTERN[1:-1], value):
        return value
    dotted = re.fullmatch(r"[a-z0-9-]+\.[a-z0-9-]+", value)
    raise fault(
        "recipe.target",
        f"`{show(value)}` is no target",
        f"write `ml.{value}`"
        if dotted
        else "write `cpu` or an instance type such as `ml.g5.12xlarge`",
    )


def check_slug(value: str) -> str:
    """The name of a provider, a release or another row of a table."""
    if re.fullmatch(SLUG_PATTERN[1:-1], value):
        return value
    example = slug(value) or "onnxruntime"
    raise fault("recipe.name", f"`{show(value)}` is no name", f"write `{example}`")


def check_prompt(value: str) -> str:
    """A prompt that says something."""
    if value.strip():
        return value
    raise fault(
        "recipe.prompt", "a prompt is empty", "write a question, or remove the item"
    )


def check_environment(value: dict[str, str]) -> dict[str, str]:
    """Variables of the serving container, within SageMaker's limits."""
    code = "recipe.environment"
    if len(value) > _MAX_VARIABLES:
        raise fault(
            code, f"{len(value)} variables, {_MAX_VARIABLES} fit", "remove some"
        )
    return value


def check_variable(name: str) -> str:
    """A variable's name; `credentials` refuses those of secrets."""
    code = "recipe.environment"
    if not _VARIABLE.match(name) or len(name) > _MAX_VARIABLE_CHARS:
        raise fault(
            code,
            f"`{show(name)}` is no variable name",
            "use letters, digits and `_`, no digit first",
        )
    return name


def check_variable_value(value: str) -> str:
    """A variable's value, within SageMaker's limit."""
    if len(value) <= _MAX_VARIABLE_CHARS and "\n" not in value:
        return value
    raise fault(
        "recipe.environment",
        f"a value of {len(value)} characters; {_MAX_VARIABLE_CHARS} on one line fit",
        "shorten it, or read it from a file in the artifact",
    )


def check_enum_hint(word: str, options: list[str], aliases: dict[str, str]) -> str:
    """How to correct a word that is none of the options."""
    near = aliases.get(word.lower()) or nearest(word, options)
    listed = f"write {join_words(options)}"
    return f"did you mean `{near}`? {listed}" if near else listed

"""
The package stage's parameters: everything the manifest says, but for its files.

Pure: the planner calls it before anything was built. What would tie the artifact to
a machine is taken out here, so that the identity depends on content alone.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, cast

from lmi_build.digest import Digest, JSONValue, canonical_json, digest_json
from lmi_build.package.layouts import djl_properties

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.spi import Params, Serving
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import Recipe

ENTRY = "lmi_build.package.worker:run"
# Bumped when the worker lays out other bytes for the same parameters.
PACKAGE_SALT = 3

# Sources that name a place on the builder's disk; only their last part may stay.
_LOCAL_KINDS = frozenset({"folder", "gguf"})
_REMOTE_DATASETS = ("builtin:", "hub:", "s3://")


def package_params(  # noqa: PLR0913 - each moves the key on its own
    *,
    recipe: Recipe,
    facts: ModelFacts,
    scheme: QuantScheme,
    serving: Serving,
    keys: Mapping[str, str],
    tools: Mapping[str, Mapping[str, str]],
    handler_digest: Digest | None,
    architecture: str,
    device: str = "cpu",
) -> Params:
    """
    Lower a recipe to what the package worker needs.

    Args:
        recipe: Its `publish` section is left out: publishing the same artifact to
            another place must not make it another artifact.
        facts: The pinned model.
        scheme: What the weights are after quantization.
        serving: What the backend needs to be served.
        keys: Stage kind to key of fetch, quantize and compile.
        tools: Stage kind to distribution to version.
        handler_digest: Content of the handler's file, `handler_files.handler_digest`;
            None where a handler of the container answers.
        architecture: Processor the engine runs on, `x86_64` or `aarch64`.
        device: `cpu` or an accelerator's name.
    """
    document = portable_document(recipe.document, facts)
    bounds = recipe.bounds
    return {
        "name": recipe.name,
        "layout": recipe.package.layout,
        "format": recipe.package.format,
        "recipe": {"digest": digest_json(document), "document": document},
        "model": _model_block(facts),
        "plan": dict(keys),
        "bounds": {
            "max_input_len": bounds.max_input_len,
            "max_output_len": bounds.max_output_len,
            "max_seq_len": bounds.max_seq_len,
            "max_batch_size": bounds.max_batch_size,
            "max_num_tokens": bounds.max_num_tokens,
            "max_beam_width": bounds.max_beam_width,
            **serving.bounds,
        },
        "scheme": scheme.to_json(),
        "tools": {kind: dict(versions) for kind, versions in tools.items()},
        "compatibility": {
            "architecture": architecture,
            "device": device,
            "os": "linux",
            "python": ">=3.10",
            "requirements": list(serving.requirements),
            **serving.compatibility,
        },
        "serving": _serving_block(recipe, serving, handler_digest),
        "deploy": _deploy_block(recipe, serving),
    }


def _serving_block(
    recipe: Recipe, serving: Serving, handler_digest: Digest | None
) -> Params:
    """What the container's front end and the handler read."""
    return {
        "handler": serving.handler,
        "handler_digest": handler_digest,
        "engine_dir": serving.engine_dir,
        "tokenizer_dir": serving.tokenizer_dir,
        "tokenizer_class": serving.tokenizer_class,
        "model_files": list(serving.model_files),
        "files": dict(serving.files),
        "rehearsal": serving.rehearsal,
        "requirements": list(serving.requirements),
        "properties": djl_properties(recipe, serving),
        "settings": dict(serving.settings),
    }


def _deploy_block(recipe: Recipe, serving: Serving) -> Params:
    """What SageMaker is told when an endpoint is made."""
    return {
        "environment": {**recipe.serve.environment, **serving.environment},
        "container_startup_health_check_timeout_seconds": (
            recipe.serve.model_loading_timeout
        ),
        "model_data_compression": (
            "Gzip" if recipe.package.format == "tar.gz" else "None"
        ),
    }


def portable_document(
    document: Mapping[str, JSONValue], facts: ModelFacts
) -> dict[str, JSONValue]:
    """
    The recipe without paths of this machine and without what shapes no byte.

    `publish` says where an artifact goes, `verify` how it is judged, `job` where it is
    built; none may make it another artifact. The verification report holds its own
    settings.
    """
    copy = cast("dict[str, JSONValue]", json.loads(canonical_json(document)))
    for section in ("publish", "verify", "job"):
        copy.pop(section, None)
    model = copy.get("model")
    if isinstance(model, dict) and isinstance(model.get("source"), str):
        model["source"] = _source_label(facts)
    quantize = copy.get("quantize")
    calibration = quantize.get("calibration") if isinstance(quantize, dict) else None
    if isinstance(calibration, dict):
        dataset = calibration.get("dataset")
        if isinstance(dataset, str) and not dataset.startswith(_REMOTE_DATASETS):
            calibration["dataset"] = PurePosixPath(dataset).name
    return copy


def _source_label(facts: ModelFacts) -> str:
    if facts.kind in _LOCAL_KINDS:
        return PurePosixPath(facts.source.rstrip("/")).name or facts.kind
    return facts.source


def _model_block(facts: ModelFacts) -> dict[str, JSONValue]:
    return {
        "kind": facts.kind,
        "source": _source_label(facts),
        "revision": facts.revision,
        "dtype": facts.dtype,
        "architecture": facts.geometry.architecture,
        "model_type": facts.geometry.model_type,
        "num_layers": facts.geometry.num_layers,
        "hidden_size": facts.geometry.hidden_size,
        "vocab_size": facts.geometry.vocab_size,
        "max_position_embeddings": facts.geometry.max_position_embeddings,
        "files": [
            {"path": fact.path, "size": fact.size, "digest": fact.digest}
            for fact in sorted(facts.files, key=lambda fact: fact.path)
        ],
    }

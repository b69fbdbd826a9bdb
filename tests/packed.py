"""Small artifacts for tests: real trees around a handler without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.digest import Digest, digest_bytes, digest_file
from lmi_build.package.layouts import djl_properties
from lmi_build.package.properties import render_properties
from lmi_build.package.stage import package_params
from lmi_build.package.worker import make_manifest
from lmi_build.spi import Answer, Host, Serving
from lmi_build.values.bounds import Bounds
from lmi_build.values.manifest import FileEntry, Manifest
from lmi_build.values.model import FileFact, ModelFacts, ModelGeometry
from lmi_build.values.quant import QuantScheme
from lmi_build.values.recipe import (
    CompileSpec,
    ModelSpec,
    PackageSpec,
    QuantSpec,
    Recipe,
    ServeSpec,
    VerifySpec,
)

if TYPE_CHECKING:
    from lmi_build.digest import JSONValue

HANDLERS = Path(__file__).parent / "fixtures" / "handlers"
BOUNDS = Bounds(max_input_len=64, max_output_len=32, max_batch_size=1)
KEY = digest_bytes(b"a key")


def bounds_document(bounds: Bounds = BOUNDS) -> dict[str, JSONValue]:
    """The bounds as a manifest has them."""
    return {
        "max_input_len": bounds.max_input_len,
        "max_output_len": bounds.max_output_len,
        "max_seq_len": bounds.max_seq_len,
        "max_batch_size": bounds.max_batch_size,
        "max_num_tokens": bounds.max_num_tokens,
        "max_beam_width": bounds.max_beam_width,
    }


def sample_recipe(**changes: Any) -> Recipe:
    """A recipe for a folder model; keyword arguments replace whole sections."""
    values: dict[str, Any] = {
        "name": "sample",
        "file": "sample.yaml",
        "model": ModelSpec(source="/home/somebody/models/tiny"),
        "quantize": QuantSpec(),
        "bounds": BOUNDS,
        "compile": CompileSpec(backend="onnxruntime"),
        "serve": ServeSpec(environment={"OMP_NUM_THREADS": "2"}),
        "verify": VerifySpec(),
        "package": PackageSpec(),
        "publish": None,
        "document": {
            "schema": "lmi-build/v1",
            "name": "sample",
            "model": {"source": "/home/somebody/models/tiny"},
            "quantize": {"calibration": {"dataset": "/data/team/chat.jsonl"}},
            "publish": {"to": "s3://bucket/prefix"},
        },
    }
    return Recipe(**{**values, **changes})


def sample_facts(**changes: Any) -> ModelFacts:
    """A pinned folder model of two files."""
    geometry = ModelGeometry(
        architecture="LlamaForCausalLM",
        model_type="llama",
        num_layers=2,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=300,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    values: dict[str, Any] = {
        "kind": "folder",
        "source": "/home/somebody/models/tiny",
        "location": "/home/somebody/models/tiny",
        "revision": "",
        "geometry": geometry,
        "config": {},
        "files": (
            FileFact(path="model.safetensors", size=10, digest=digest_bytes(b"w")),
            FileFact(path="config.json", size=2, digest="git-sha1:" + "a" * 40),
        ),
        "tensors": (),
        "dtype": "bfloat16",
    }
    return ModelFacts(**{**values, **changes})


# A machine without a GPU or a container.
HOST = Host(
    architecture="x86_64",
    runner="local",
    versions=dict.fromkeys,
    ask=lambda words: Answer(status=127, output=words[0]),
)


def sample_serving(**changes: Any) -> Serving:
    """What a backend would ask for."""
    values: dict[str, Any] = {
        "handler": "echo_handler",
        "requirements": (),
        "properties": {"option.max_input_len": str(BOUNDS.max_input_len)},
        "engine_dir": "engine",
        "settings": {"bounds": bounds_document()},
    }
    return Serving(**{**values, **changes})


def sample_params(
    *,
    recipe: Recipe | None = None,
    facts: ModelFacts | None = None,
    serving: Serving | None = None,
    architecture: str = "x86_64",
    handler_digest: Digest = KEY,
) -> dict[str, Any]:
    """Package parameters of the samples."""
    scheme = QuantScheme(
        weight_bits=16,
        weight_dtype="float",
        group_size=-1,
        sym=True,
        activation_bits=16,
        packing="none",
    )
    return dict(
        package_params(
            recipe=recipe or sample_recipe(),
            facts=facts or sample_facts(),
            scheme=scheme,
            serving=serving or sample_serving(),
            keys={"fetch": KEY, "compile": KEY},
            tools={"compile": {"onnxruntime": "1.31.1", "torch": "2.13.0+cpu"}},
            handler_digest=handler_digest,
            architecture=architecture,
        )
    )


def echo_artifact(
    root: Path,
    *,
    architecture: str,
    handler_name: str = "echo_handler",
    bounds: Bounds = BOUNDS,
    **settings: Any,
) -> Manifest:
    """
    Write a whole artifact; returns its manifest.

    Args:
        root: Its folder.
        architecture: Of the machine that it is for.
        handler_name: Which of the handlers without weights.
        bounds: The promised ones.
        settings: What the handler finds in `lmi_build.json` beside the bounds.
    """
    document = {"bounds": bounds_document(bounds), **settings}
    recipe, serving = sample_recipe(bounds=bounds), sample_serving(settings=document)
    handler = (HANDLERS / f"{handler_name}.py").read_bytes()
    contents = {
        "model.py": handler,
        "engine/graph.bin": b"engine bytes",
        "lmi_build.json": json.dumps(document).encode(),
        "requirements.txt": b"",
        "tokenizer.json": b"{}",
        "README.md": b"# sample\n",
        "serving.properties": render_properties(djl_properties(recipe, serving)),
    }
    for name, data in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    params = sample_params(recipe=recipe, serving=serving, architecture=architecture)
    manifest = make_manifest(
        params, [entry(root, name) for name in contents], ledger=None
    )
    (root / "manifest.json").write_bytes(manifest.to_bytes())
    return manifest


def entry(root: Path, name: str) -> FileEntry:
    """The manifest's row of a file."""
    path = root / name
    return FileEntry(path=name, size=path.stat().st_size, digest=digest_file(path))

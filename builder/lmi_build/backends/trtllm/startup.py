"""
What an LMI container does with a folder when it starts: does it compile?

The front end looks at a few names and three small files, and a folder that it does not
recognise is compiled at every start, for minutes to hours. This is the same decision,
made from a listing; what the handler would refuse right afterwards is found as well.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.backends.folder import read_text
from lmi_build.backends.java_properties import java_properties, with_environment
from lmi_build.backends.trtllm import startup_engine, startup_triton
from lmi_build.backends.trtllm.front_ends import front_end, front_ends
from lmi_build.backends.trtllm.verdicts import Case
from lmi_build.backends.verdicts import Verdict, compiles, elsewhere, fails

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.folder import Folder

PROPERTIES_NAME = "serving.properties"
# Where SageMaker puts the model's files.
MOUNT = "/opt/ml/model"
_ENGINES = ("Python", "MPI")
# Endings by which the front end knows models of other engines, at the root.
_FOREIGN = {
    ".pt": "PyTorch",
    ".onnx": "OnnxRuntime",
    ".xgb": "XGBoost",
}


def startup(
    folder: Folder,
    lmi: str,
    *,
    trtllm: str = "",
    environment: Mapping[str, str] | None = None,
) -> Verdict:
    """
    What one release does with a folder at start-up.

    Args:
        folder: What lies at `/opt/ml/model`.
        lmi: Version of LMI such as `0.33.0`, or `master`.
        trtllm: Version of TensorRT-LLM in that image; empty when it does not matter.
        environment: Variables of the container beside those of its image.

    Raises:
        KeyError: That version of LMI is not known.
        VerifyFailed: `engine.unreadable`, when a file that the front end reads whole
            is absurdly large.
    """
    front = front_end(lmi)
    folder, mount = _model_folder(folder)
    read = _properties(folder, environment or {})
    if isinstance(read, str):
        return fails(read, "write `key=value` lines in printable ASCII", lmi=lmi)
    case = Case(
        folder=folder,
        front=front,
        properties=read,
        lmi=lmi,
        trtllm=trtllm,
        mount=mount,
    )
    verdict = _elsewhere(case) or _engine_missing(case) or _decided(case)
    # Compiling comes first, even for an engine that is not in the container.
    return verdict if verdict.outcome == "compiles" else _foreign(case) or verdict


def startup_everywhere(folder: Folder) -> tuple[Verdict, ...]:
    """The verdict of every known release, newest first."""
    return tuple(startup(folder, lmi) for lmi in front_ends())


def _model_folder(folder: Folder) -> tuple[Folder, str]:
    """
    The folder that the front end looks at, and where it is in the container.

    A folder that holds nothing but one folder stands for that one.

    Source: DJL `Utils.getNestedModelDir`.
    """
    names = [name for name in folder.names() if not name.startswith(".")]
    folders = [name for name in folder.folders() if not name.startswith(".")]
    if names or len(folders) != 1:
        return folder, MOUNT
    return folder.inside(folders[0]), f"{MOUNT}/{folders[0]}"


def _decided(case: Case) -> Verdict:
    config = _root_config(case)
    if isinstance(config, str):
        return fails(
            f"{config}, so the front end ends with `Invalid huggingface model id`",
            "repair or remove that file",
            lmi=case.lmi,
        )
    if case.front.layout == "engine":
        verdict = startup_engine.decide(case, config)
    else:
        verdict = startup_triton.decide(case, config)
    if case.front.defect and verdict.outcome == "loads":
        return fails(
            f"the front end takes it as it is, but {case.front.defect}",
            "use LMI 0.33.0, the last published image with TensorRT-LLM",
            lmi=case.lmi,
        )
    return verdict


def _properties(folder: Folder, environment: Mapping[str, str]) -> dict[str, str] | str:
    """The entries, or why the front end cannot read them."""
    entries: dict[str, str] = {}
    if folder.has(PROPERTIES_NAME):
        try:
            entries = java_properties(read_text(folder, PROPERTIES_NAME))
        except ValueError as error:
            return f"{PROPERTIES_NAME} cannot be read: {error}"
    return with_environment(entries, environment)


def _elsewhere(case: Case) -> Verdict | None:
    """Properties that make the container load other weights than these."""
    model_id = case.properties.get("option.model_id", "").strip()
    if not model_id or model_id.rstrip("/") == MOUNT:
        return None
    fix = "remove `option.model_id`: the engine lies beside it"
    if model_id.startswith("s3://"):
        return elsewhere(
            f"`option.model_id` is {model_id}: the container downloads that and"
            " decides by what lies there",
            fix,
            lmi=case.lmi,
        )
    if model_id.startswith("/"):
        return elsewhere(
            f"`option.model_id` is {model_id}, another folder of the container",
            fix,
            lmi=case.lmi,
        )
    if case.front.layout == "triton" and startup_triton.repositories(case.folder):
        return elsewhere(
            f"`option.model_id` is {model_id}, which the handler is given in place of"
            " the model repository beside it",
            fix,
            lmi=case.lmi,
        )
    return compiles(
        f"`option.model_id` is {model_id}: the container takes that model from the"
        " hub and builds an engine of it",
        fix,
        lmi=case.lmi,
    )


def _engine_missing(case: Case) -> Verdict | None:
    """No engine of DJL is named, and none can be inferred."""
    if "engine" in case.properties or _inferred_engine(case):
        return None
    return fails(
        "no `engine` is set and nothing at the root tells which it is:"
        " `Failed to detect engine of the model`",
        f"write `engine={case.front.engine}`",
        lmi=case.lmi,
    )


def _foreign(case: Case) -> Verdict | None:
    """An engine of DJL that is not in the container."""
    engine = case.properties.get("engine") or _inferred_engine(case)
    if engine in {*_ENGINES, ""}:
        return None
    return fails(
        f"engine {engine} is not in this container",
        f"write `engine={case.front.engine}`",
        lmi=case.lmi,
    )


def _inferred_engine(case: Case) -> str:
    """
    The engine that the front end infers from names at the root.

    Source: `ModelInfo.inferEngine`; up to 0.27 Python comes first.
    """
    folder = case.folder
    python = any(map(folder.has, ("model.py", "config.json", "MAR-INF/MANIFEST.json")))
    python = python or "option.model_id" in case.properties
    foreign = next(
        (engine for ending, engine in _FOREIGN.items() if folder.has(f"model{ending}")),
        "",
    )
    if folder.has("config.pbtxt"):
        foreign = foreign or "TritonServer"
    if folder.has("saved_model.pb"):
        foreign = foreign or "TensorFlow"
    python_first = case.front.config_decides != "always"
    order = ("Python" if python else "", foreign)
    first, second = order if python_first else order[::-1]
    return first or second


def _root_config(case: Case) -> dict[str, Any] | str | None:
    """
    The configuration that the front end reads as that of a Hugging Face model.

    A text says why it cannot be read; None means that there is none.
    """
    if case.front.config_decides != "always" and (
        "engine" in case.properties or _inferred_engine(case) != "Python"
    ):
        return None
    name = next((name for name in case.front.configs if case.folder.has(name)), None)
    if name is None:
        return None
    data = read_text(case.folder, name)
    if not data.strip() and case.front.layout == "triton":
        # Read as nothing, and then there is none.
        return None
    document = _object(data, name)
    if isinstance(document, str):
        return document
    if case.front.config_decides == "never":
        # It is read for the kind of engine, which is the same for all here.
        return None
    if name == "params.json":
        # Read as the configuration of a Mistral model, whatever it says.
        return {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    if not isinstance(document.get("architectures", []), list):
        return f"`architectures` of {name} at the root is not a list"
    return document


def _object(data: bytes, name: str) -> dict[str, Any] | str:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return f"{name} at the root is not JSON"
    if not isinstance(document, dict):
        return f"{name} at the root holds no object"
    return document


__all__ = ["MOUNT", "PROPERTIES_NAME", "Verdict", "startup", "startup_everywhere"]

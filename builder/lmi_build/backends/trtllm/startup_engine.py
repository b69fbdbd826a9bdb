"""What the front ends from LMI 0.33 on, which want an engine at the root, decide."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.backends.folder import read_object, read_text
from lmi_build.backends.trtllm.engine_checks import (
    Expected,
    load_problems,
    unknowns,
)
from lmi_build.backends.trtllm.engine_folder import (
    CONFIG_NAME,
    REHEARSAL,
    read_engine_folder,
)
from lmi_build.backends.trtllm.startup_triton import repositories
from lmi_build.backends.trtllm.tokenizer_config import GENERIC, class_problem
from lmi_build.backends.trtllm.tokenizer_config import NAME as _TOKENIZER_CONFIG
from lmi_build.backends.verdicts import compiles, fails, loads
from lmi_build.errors import VerifyFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.trtllm.engine_folder import EngineFolder
    from lmi_build.backends.trtllm.verdicts import Case
    from lmi_build.backends.verdicts import Verdict

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_HANDLER = "model.py"
# What `option.rolling_batch` may say, beside nothing.
_NO_SCHEDULER = (None, "auto", "disable")
_PYTORCH = "pytorch"
# What the handler asks for when `option.max_rolling_batch_size` is not set; the front
# end sets it when it reads the engine's configuration as a model's.
_USUAL_BATCH_SIZE = 32
_WEIGHTS = (".safetensors", ".bin")


def decide(case: Case, config: Mapping[str, Any] | None) -> Verdict:
    """
    The verdict on one folder.

    Args:
        case: The folder before the front end.
        config: What the front end reads at the root as a model's configuration.
    """
    if case.option("backend") == _PYTORCH:
        return _handler_refused(case) or _pytorch(case, config)
    if not _is_compiled(case):
        return _compiled(case, config)
    return _handler_refused(case) or _broken(case)


def _is_compiled(case: Case) -> bool:
    """
    The front end's only test, once `config.json` is known to be an object.

    Source: `LmiUtils.isValidTrtLlmModelRepo` at 0.33.
    """
    if not case.folder.has(CONFIG_NAME):
        return False
    return "build_config" in json.loads(read_text(case.folder, CONFIG_NAME))


def _compiled(case: Case, config: Mapping[str, Any] | None) -> Verdict:
    """Why the folder does not count as compiled."""
    found = repositories(case.folder)
    if found:
        return compiles(
            f"`{found[0]}` is a model repository for Triton, which this release does"
            " not know",
            "deploy it with LMI 0.32.0, or build it for this release",
            lmi=case.lmi,
        )
    if config is None and case.folder.has(REHEARSAL):
        return compiles(
            f"{REHEARSAL} lies at the root: the engine was rehearsed, not built",
            "build it on a machine with the GPU, without `--rehearse`",
            lmi=case.lmi,
        )
    if config is None or not case.folder.has(CONFIG_NAME):
        below = [path for path in case.folder.sizes if path.endswith(f"/{CONFIG_NAME}")]
        where = f"; there is one in `{min(below)}`" if below else ""
        return compiles(
            f"no {CONFIG_NAME} lies at the root{where}",
            "put the engine's own files at the root, beside serving.properties",
            lmi=case.lmi,
        )
    if "builder_config" in config:
        reason = "the engine is of TensorRT-LLM 0.7 or older"
        fix = "build it again for this release"
    elif "architecture" in config and "dtype" in config:
        reason = "it is a checkpoint that an engine is built from, not an engine"
        fix = "run the compile stage, and deploy the engine"
    else:
        reason = f"{CONFIG_NAME} has no `build_config`, so it is a model to be compiled"
        fix = "build an engine, or write `option.backend=pytorch` to serve it as it is"
    return compiles(reason, fix, lmi=case.lmi)


def _handler_refused(case: Case) -> Verdict | None:
    """Settings with which the handler of this release does not answer."""
    entry, right = case.option("entryPoint"), case.front.entry_point
    if entry is not None and entry != right and entry.startswith("djl_python."):
        return fails(
            f"`option.entryPoint` is {entry}, which does not know this layout",
            f"write `option.entryPoint={right}`, or remove it",
            lmi=case.lmi,
        )
    asynchronous = (case.option("async_mode") or "").lower() == "true"
    if entry == right and not asynchronous:
        return fails(
            "`option.entryPoint` is set, so nothing turns async mode on, and the"
            " handler answers in async mode only",
            "write `option.async_mode=true`",
            lmi=case.lmi,
        )
    batching = case.option("rolling_batch")
    if batching not in _NO_SCHEDULER:
        # `PyProcess.predict` asks a scheduler before it asks an asynchronous handler.
        return fails(
            f"`option.rolling_batch` is {batching}: requests go to a scheduler that"
            " this handler does not answer",
            "write `option.rolling_batch=disable`",
            lmi=case.lmi,
        )
    ranks = (case.number("tensor_parallel_degree") or 1) * (
        case.number("pipeline_parallel_degree") or 1
    )
    if _uses_mpi(case) and ranks > 1:
        return fails(
            f"MPI starts {ranks} servers, and each wants {ranks} ranks of its own",
            "write `engine=Python`, and remove `option.mpi_mode`",
            lmi=case.lmi,
        )
    return None


def _uses_mpi(case: Case) -> bool:
    return (
        case.properties.get("engine") == "MPI"
        or (case.option("mpi_mode") or "").lower() == "true"
    )


def _pytorch(case: Case, config: Mapping[str, Any] | None) -> Verdict:
    """A folder that the PyTorch backend is asked to load as it is."""
    names = case.folder.names()
    if config is None or not isinstance(config.get("architectures"), list):
        return fails(
            f"`option.backend` is pytorch, but {CONFIG_NAME} names no architecture",
            "deploy a Hugging Face folder, or remove `option.backend`",
            lmi=case.lmi,
        )
    if not any(name.endswith(_WEIGHTS) for name in names):
        return fails(
            "`option.backend` is pytorch, but there are no weights at the root",
            "deploy a Hugging Face folder, or remove `option.backend`",
            lmi=case.lmi,
        )
    refused = _no_tokenizer(case) or _no_class(case, beside="the model's")
    return refused or loads(
        "`option.backend` is pytorch: nothing is compiled", lmi=case.lmi
    )


def _broken(case: Case) -> Verdict:
    """What the handler would refuse in the engine that was recognised."""
    try:
        engine = read_engine_folder(case.folder)
    except VerifyFailed as error:
        return fails(error.message, "build the artifact again", lmi=case.lmi)
    problems = load_problems(engine, _expected(case))
    if problems:
        return fails(problems[0].message, problems[0].hint, lmi=case.lmi)
    refused = _too_much(case, engine) or _no_tokenizer(case) or _no_class(case)
    return refused or loads(
        f"{CONFIG_NAME} at the root has `build_config`",
        lmi=case.lmi,
        notes=_notes(case, engine),
    )


def _expected(case: Case) -> Expected:
    """One rank asks for nothing: the engine's own number is taken then."""
    tensor, pipeline = (
        case.number("tensor_parallel_degree"),
        case.number("pipeline_parallel_size"),
    )
    return Expected(
        trtllm=case.trtllm or None,
        tensor_parallel_size=None if tensor == 1 else tensor,
        pipeline_parallel_size=None if pipeline == 1 else pipeline,
    )


def _too_much(case: Case, engine: EngineFolder) -> Verdict | None:
    """
    More asked of the engine than it was built for.

    Source: TensorRT-LLM `llmapi/llm_args.py`,
    `validate_build_config_with_runtime_params`.
    """
    asked = {
        "max_batch_size": (
            "max_rolling_batch_size",
            case.number("max_rolling_batch_size") or _USUAL_BATCH_SIZE,
        ),
        "max_num_tokens": ("max_num_tokens", case.number("max_num_tokens")),
    }
    for name, (key, value) in asked.items():
        built = engine.bounds.get(name)
        if value is None or built is None or value <= built:
            continue
        unset = "" if case.option(key) else ", its default,"
        return fails(
            f"`option.{key}`{unset} is {value}, the engine was built for"
            f" `{name}` {built}",
            f"write `option.{key}={built}`",
            lmi=case.lmi,
        )
    world = engine.world_size
    visible = (case.number("tensor_parallel_degree") or world) * (
        case.number("pipeline_parallel_degree") or 1
    )
    if visible < world:
        return fails(
            f"the server gives the engine {visible} GPUs, it has {world} ranks",
            f"write `option.tensor_parallel_degree={engine.tensor_parallel_size}` and"
            f" `option.pipeline_parallel_degree={engine.pipeline_parallel_size}`",
            lmi=case.lmi,
        )
    return None


def _no_tokenizer(case: Case) -> Verdict | None:
    if any(case.folder.has(name) for name in _TOKENIZER_FILES):
        return None
    return fails(
        "there is no tokenizer, so every request with a text is refused",
        "put tokenizer.json and tokenizer_config.json at the root",
        lmi=case.lmi,
    )


def _no_class(case: Case, *, beside: str = "the engine's") -> Verdict | None:
    """
    A tokenizer whose class nothing names, or that the image does not have.

    Source: transformers 4.51 `AutoTokenizer.from_pretrained`, as the LLM API calls it.
    """
    config: dict[str, Any] = {}
    if case.folder.has(_TOKENIZER_CONFIG):
        try:
            config = read_object(case.folder, _TOKENIZER_CONFIG)
        except VerifyFailed as error:
            return fails(error.message, "build the artifact again", lmi=case.lmi)
    problem = class_problem(config)
    # A model's configuration names its kind, and that has a tokenizer.
    if not problem or (beside == "the model's" and not config.get("tokenizer_class")):
        return None
    return fails(
        f"{_TOKENIZER_CONFIG} {problem}, and {CONFIG_NAME} is {beside}: no tokenizer"
        " is loaded, so every request with a text is refused",
        f"write `tokenizer_class` into {_TOKENIZER_CONFIG}: {GENERIC} for a"
        " tokenizer.json",
        lmi=case.lmi,
    )


def _notes(case: Case, engine: EngineFolder) -> tuple[str, ...]:
    """What depends on the machine, or cannot be known from the files."""
    notes = [f"unknown: {what}" for what in unknowns(engine)]
    if case.option("tensor_parallel_degree") is None:
        notes.append(
            "`option.tensor_parallel_degree` is not set: it becomes the number of GPUs,"
            f" and any other than {engine.tensor_parallel_size} or 1 is refused"
        )
    if case.folder.has(_HANDLER) and case.option("entryPoint") is None:
        notes.append(f"{_HANDLER} answers instead of the container's handler")
    return tuple(notes)

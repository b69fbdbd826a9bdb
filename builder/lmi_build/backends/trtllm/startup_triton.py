"""What the front ends up to LMI 0.32, which want a Triton repository, decide."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lmi_build.backends.folder import read_text
from lmi_build.backends.trtllm.engine_checks import (
    Expected,
    load_problems,
)
from lmi_build.backends.trtllm.engine_folder import (
    CONFIG_NAME,
    REHEARSAL,
    read_engine_folder,
)
from lmi_build.backends.trtllm.triton_config import CONFIG_NAME as TRITON_CONFIG
from lmi_build.backends.verdicts import (
    compiles,
    fails,
    generates_text,
    loads,
    skips,
)
from lmi_build.errors import VerifyFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.folder import Folder
    from lmi_build.backends.trtllm.verdicts import Case
    from lmi_build.backends.verdicts import Verdict

_TOKENIZER = "tokenizer_config.json"
_BATCHING = "trtllm"
# A parameter of config.pbtxt, whichever way its text is spread over lines.
_PARAMETER = re.compile(
    r'parameters\s*:?\s*\{\s*key\s*:\s*"([^"]*)"\s*'
    r'value\s*:?\s*\{\s*string_value\s*:\s*"([^"]*)"'
)
_COMMENT = re.compile(r"#[^\n]*")
_DECOUPLED = re.compile(r"decoupled\s*:\s*(true|t|1)\b", re.IGNORECASE)
# Without these the backend does not start; any other is taken by its default.
_NEEDED = ("max_batch_size", "gpt_model_path", "gpt_model_type")


def decide(case: Case, config: Mapping[str, Any] | None) -> Verdict:
    """
    The verdict on one folder.

    Args:
        case: The folder before the front end.
        config: What the front end reads at the root as a model's configuration.
    """
    if verdict := _t5(case, config):
        return verdict
    if verdict := _batching_refused(case, config):
        return verdict
    found = repositories(case.folder)
    if not found:
        return _compiled(case)
    return _mpi_missing(case) or _handler_refused(case) or _broken(case, found)


def repositories(folder: Folder) -> tuple[str, ...]:
    """
    The folders below the root that count as a compiled model.

    Source: `LmiUtils.isValidTrtLlmModelRepo`.
    """
    return tuple(
        name
        for name in folder.folders()
        if folder.has(f"{name}/{TRITON_CONFIG}") and folder.has(f"{name}/{_TOKENIZER}")
    )


def _t5(case: Case, config: Mapping[str, Any] | None) -> Verdict | None:
    """LMI 0.27 and 0.28 serve T5 with another runtime, which has its own layout."""
    if not case.front.t5 or config is None or config.get("model_type") != "t5":
        return None
    if case.front.t5 == "folders":
        parts = [
            name
            for name in case.folder.folders()
            if ("encoder" in name or "decoder" in name)
            and case.folder.has(f"{name}/{CONFIG_NAME}")
        ]
        if parts:
            return loads(f"a T5 engine lies in `{parts[0]}`", lmi=case.lmi)
    return compiles(
        "the configuration at the root is that of T5, which this release builds at"
        " start-up",
        "use LMI 0.33.0 with `option.backend=pytorch`, or another model",
        lmi=case.lmi,
    )


def _batching_refused(case: Case, config: Mapping[str, Any] | None) -> Verdict | None:
    """Why the front end does not come to TensorRT-LLM at all."""
    value = case.option("rolling_batch")
    fix = "write `option.rolling_batch=trtllm`"
    together = (case.properties.get("batch_size") or "1").strip()
    if config is not None and together.isdigit() and int(together) > 1:
        return skips("`batch_size` turns `option.rolling_batch` off", fix, lmi=case.lmi)
    if value == _BATCHING:
        return None
    if value not in {None, "auto"}:
        return skips(
            f"`option.rolling_batch` is {value}, so the folder is not even looked at",
            fix,
            lmi=case.lmi,
        )
    if config is None or generates_text(config):
        return None
    return skips(
        f"{CONFIG_NAME} at the root names no text-generating architecture, so"
        " `option.rolling_batch` becomes `disable`",
        f"keep {CONFIG_NAME} out of the root, or {fix}",
        lmi=case.lmi,
    )


def _compiled(case: Case) -> Verdict:
    """Why nothing in the folder counts as compiled."""
    folder = case.folder
    partial = [
        name for name in folder.folders() if folder.has(f"{name}/{TRITON_CONFIG}")
    ]
    if partial:
        reason = f"`{partial[0]}` has {TRITON_CONFIG}, but no {_TOKENIZER}"
        fix = f"put the tokenizer's files beside `{partial[0]}/{TRITON_CONFIG}`"
    elif folder.has(TRITON_CONFIG):
        reason = f"{TRITON_CONFIG} lies at the root; one folder below it is looked for"
        fix = "move everything but serving.properties into a folder `tensorrt_llm`"
    elif _is_engine(folder):
        reason = "it is an engine of the LLM API, which this release does not know"
        fix = "deploy it with LMI 0.33.0, or build it for this release"
    else:
        deep = [path for path in folder.sizes if path.endswith(f"/{TRITON_CONFIG}")]
        reason = (
            f"`{min(deep)}` lies deeper than one folder below the root"
            if deep
            else f"no folder below the root has {TRITON_CONFIG} and {_TOKENIZER}"
        )
        fix = "build an engine for this release and deploy that"
    return compiles(reason, fix, lmi=case.lmi)


def _is_engine(folder: Folder) -> bool:
    try:
        return folder.has(CONFIG_NAME) and bool(read_engine_folder(folder))
    except VerifyFailed:
        return False


def _mpi_missing(case: Case) -> Verdict | None:
    """The handler of these releases runs one process for each rank."""
    mpi = case.properties.get("engine") == "MPI" or case.option("mpi_mode") == "true"
    if mpi or case.front.sets_mpi:
        return None
    # Inferred here, the engine is MPI: see `LmiUtils.inferLmiEngine`.
    if "engine" not in case.properties:
        return None
    ranks = case.number("tensor_parallel_degree") or 1
    if not case.front.checks_mpi and ranks == 1:
        return None
    return fails(
        "engine Python runs one process, and the handler needs MPI",
        "write `engine=MPI`",
        lmi=case.lmi,
    )


def _handler_refused(case: Case) -> Verdict | None:
    entry = case.option("entryPoint")
    if entry is None or entry == case.front.entry_point:
        return None
    if not entry.startswith("djl_python."):
        return None
    return fails(
        f"`option.entryPoint` is {entry}, which does not know this layout",
        f"write `option.entryPoint={case.front.entry_point}`, or remove it",
        lmi=case.lmi,
    )


def _broken(case: Case, found: tuple[str, ...]) -> Verdict:
    """What the backend would refuse in the repository that was recognised."""
    name = found[0]
    try:
        text = read_text(case.folder, f"{name}/{TRITON_CONFIG}").decode("utf-8")
    except (VerifyFailed, UnicodeDecodeError) as error:
        return fails(
            f"{name}/{TRITON_CONFIG} cannot be read: {error}",
            "build the artifact again",
            lmi=case.lmi,
        )
    where = f"{name}/{TRITON_CONFIG}"
    bare = _COMMENT.sub("", text)
    parameters = dict(_PARAMETER.findall(bare))
    if verdict := _template_left(case, bare, parameters, where):
        return verdict
    if not _DECOUPLED.search(bare):
        return fails(
            f"{where} is not decoupled, so the handler gets no token before the last",
            "write `model_transaction_policy { decoupled: true }`",
            lmi=case.lmi,
        )
    for key in ("gpt_model_path", "encoder_model_path"):
        path = parameters.get(key, "")
        # Without an encoder the backend only warns that there is none.
        if key == "gpt_model_path" or (path and "${" not in path):
            verdict = _engine_broken(case, key, path, where)
            if verdict is not None:
                return verdict
    return loads(f"`{name}` has {TRITON_CONFIG} and {_TOKENIZER}", lmi=case.lmi)


def _template_left(
    case: Case, text: str, parameters: Mapping[str, str], where: str
) -> Verdict | None:
    """A place of the template that nobody filled, where the backend needs a value."""
    size = re.search(r"max_batch_size\s*:\s*(\S+)", text)
    values = {**parameters, "max_batch_size": size.group(1) if size else ""}
    for name in _NEEDED:
        value = values.get(name, "")
        if value and "${" not in value:
            continue
        what = f"is still {value}" if value else "is not set"
        return fails(
            f"`{name}` {what} in {where}",
            f"fill `{name}`; the engine's folder inside the container is"
            f" {case.mount}/tensorrt_llm/1",
            lmi=case.lmi,
        )
    return None


def _engine_broken(case: Case, key: str, path: str, where: str) -> Verdict | None:
    """The engine that `config.pbtxt` names is not there, or not whole."""
    start = f"{case.mount}/"
    engine = case.folder.inside(path.removeprefix(start).rstrip("/"))
    if path.startswith(start) and engine.has(REHEARSAL):
        return fails(
            f"{path} holds {REHEARSAL}: the engine was rehearsed, not built",
            "build it on a machine with the GPU, without `--rehearse`",
            lmi=case.lmi,
        )
    if not path.startswith(start) or not engine.has(CONFIG_NAME):
        return fails(
            f"`{key}` in {where} is {path}, and no engine lies there",
            f"write {start} and the folder of the engine, such as"
            f" {start}tensorrt_llm/1",
            lmi=case.lmi,
        )
    try:
        problems = load_problems(read_engine_folder(engine), _expected(case))
    except VerifyFailed as error:
        return fails(error.message, "build the artifact again", lmi=case.lmi)
    if not problems:
        return None
    return fails(problems[0].message, problems[0].hint, lmi=case.lmi)


def _expected(case: Case) -> Expected:
    pipeline = case.number("pipeline_parallel_degree")
    return Expected(
        trtllm=case.trtllm or None,
        tensor_parallel_size=case.number("tensor_parallel_degree"),
        pipeline_parallel_size=pipeline if case.front.pipeline_parallel else None,
    )

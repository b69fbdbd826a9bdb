"""
What an image with vLLM does with a folder when it starts: does it load it as it is?

The front end fills in properties, chooses a handler, and the handler refuses what its
classes of properties do not take; vLLM then reads `config.json`. This is the same
decision, made from a listing and small texts.

Source: djl-serving 0.28.0-dlc to 0.36.0-lmi27-dlc: `LmiConfigRecommender.java`,
`PyModel.java`, djl_python/properties_manager; vLLM `ModelConfig._verify_quantization`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.backends.folder import read_object, read_text
from lmi_build.backends.java_properties import java_properties, with_environment
from lmi_build.backends.verdicts import (
    Verdict,
    compiles,
    elsewhere,
    fails,
    generates_text,
    loads,
    skips,
)
from lmi_build.backends.vllm.documents import is_older
from lmi_build.backends.vllm.kernels import kernels
from lmi_build.catalog.vllm_releases import vllm_handlers, vllm_releases
from lmi_build.checkpoint.formats.config_reader import read_scheme
from lmi_build.errors import Unsupported, VerifyFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.backends.folder import Folder
    from lmi_build.catalog.vllm_releases import Handler, VllmRelease

PROPERTIES_NAME = "serving.properties"
MOUNT = "/opt/ml/model"
_CONFIG = "config.json"
_ASYNC = "djl_python.lmi_vllm.vllm_async_service"
_HUGGINGFACE = "djl_python.huggingface"
# Words of `HuggingFaceProperties`, which every handler makes first.
_DTYPES = ("auto", "fp32", "fp16", "bf16", "int8")
_REMOVED = "lmi-dist"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Case:
    """One folder in one image."""

    folder: Folder
    release: VllmRelease
    properties: Mapping[str, str]
    config: Mapping[str, Any]

    def said(self, key: str) -> str:
        """A property below `option.`; empty where it is absent."""
        return self.properties.get(f"option.{key}", "").strip()


def vllm_startup(
    folder: Folder, release: str, *, environment: Mapping[str, str] | None = None
) -> Verdict:
    """
    What one image does with a folder at start-up.

    Args:
        folder: What lies at `/opt/ml/model`.
        release: Row of the catalogue, such as `djl-lmi-0.36.0`.
        environment: Variables of the container beside those of its image.

    Raises:
        KeyError: There is no such row.
    """
    row = vllm_releases()[release]
    try:
        entries: dict[str, str] = {}
        if folder.has(PROPERTIES_NAME):
            entries = java_properties(read_text(folder, PROPERTIES_NAME))
        config = read_object(folder, _CONFIG) if folder.has(_CONFIG) else {}
    except (ValueError, VerifyFailed) as error:
        return fails(f"a file cannot be read: {error}", "repair that file", lmi=row.lmi)
    case = _Case(
        folder=folder,
        release=row,
        properties=with_environment(entries, environment or {}),
        config=config,
    )
    verdict = _elsewhere(case) or _refused(case)
    if verdict is not None:
        return verdict
    handler = _handler(case)
    if isinstance(handler, Verdict):
        return handler
    return _handler_refused(case, handler) or _weights(case, handler)


def vllm_startup_everywhere(folder: Folder) -> tuple[Verdict, ...]:
    """The verdict of every image of `djl-lmi`, newest first."""
    return tuple(
        vllm_startup(folder, name)
        for name, row in vllm_releases().items()
        if row.container == "djl-lmi"
    )


def names_vllm(folder: Folder) -> bool:
    """Whether a folder's own properties name one of the handlers told of here."""
    if not folder.has(PROPERTIES_NAME):
        return False
    try:
        entries = java_properties(read_text(folder, PROPERTIES_NAME))
    except (ValueError, VerifyFailed):
        return False
    points = {row.entry_point for row in vllm_handlers().values()}
    return entries.get("option.entryPoint", "") in points


def _elsewhere(case: _Case) -> Verdict | None:
    model_id = case.said("model_id")
    if not model_id or model_id.rstrip("/") == MOUNT:
        return None
    return elsewhere(
        f"`option.model_id` is {model_id}: the container loads that instead",
        "remove `option.model_id`: the weights lie beside serving.properties",
        lmi=case.release.lmi,
    )


def _refused(case: _Case) -> Verdict | None:
    """What ends the start before a handler is chosen."""
    lmi = case.release.lmi
    if not case.config:
        return fails(
            f"there is no {_CONFIG} at the root", "put the model at the root", lmi=lmi
        )
    if not any(name.endswith(".safetensors") for name in case.folder.names()):
        return fails(
            "there is no .safetensors file at the root",
            "convert the weights: `lmi-build build` writes safetensors alone",
            lmi=lmi,
        )
    engines = {row.engine for row in _handlers(case)}
    engine = case.properties.get("engine", "Python")
    if engine not in engines:
        return fails(
            f"engine {engine} loads no folder for vLLM",
            f"write `engine={max(engines)}`",
            lmi=lmi,
        )
    return None


def _handlers(case: _Case) -> tuple[Handler, ...]:
    return tuple(vllm_handlers()[name] for name in case.release.handlers)


def _handler(case: _Case) -> Handler | Verdict:
    """What the front end chooses."""
    lmi, release = case.release.lmi, case.release
    point, batch = case.said("entryPoint"), case.said("rolling_batch") or "auto"
    rows = _handlers(case)
    if batch == _REMOVED and release.handler(_REMOVED) is None:
        # The recommender replaces it, whatever the folder says.
        batch = "vllm"
    if int(case.properties.get("batch_size", "1") or "1") > 1:
        batch = "disable"
    if batch == "auto":
        if not generates_text(case.config):
            return skips(
                "no architecture of config.json is a text generator's: the folder is"
                " loaded with transformers",
                "set `option.rolling_batch` and `option.entryPoint`",
                lmi=lmi,
            )
        if point in {"", vllm_handlers()[release.auto].entry_point}:
            return vllm_handlers()[release.auto]
    if point == _ASYNC or (not point and batch == "disable" and _is_async(case)):
        found = next((row for row in rows if row.entry_point == _ASYNC), None)
        if found is not None and batch == "disable" and not _is_async(case):
            return fails(
                "nothing turns `async_mode` on where `option.entryPoint` is set",
                "write `option.async_mode=true`",
                lmi=lmi,
            )
    else:
        wanted = point or _HUGGINGFACE
        found = next(
            (
                row
                for row in rows
                if row.rolling_batch == batch and row.entry_point == wanted
            ),
            None,
        )
    if found is None:
        return fails(
            f"`{release.name}` has no handler `{point or _HUGGINGFACE}` with"
            f" `option.rolling_batch={batch}`",
            "build it for this release, or name the release it was built for",
            lmi=lmi,
        )
    return found


def _is_async(case: _Case) -> bool:
    return case.said("async_mode").lower() == "true"


def _handler_refused(case: _Case, handler: Handler) -> Verdict | None:
    """What the handler's classes of properties do not take."""
    lmi = case.release.lmi
    dtype = case.said("dtype").lower()
    if dtype and dtype not in _DTYPES:
        return fails(
            f"`option.dtype` is {dtype}, LMI's handlers know {', '.join(_DTYPES)}",
            "write `option.dtype=fp16` or `bf16`",
            lmi=lmi,
        )
    stages = case.said("pipeline_parallel_degree") or "1"
    if handler.library == "vllm" and stages != "1" and not handler.pipeline_parallel:
        return fails(
            f"the handler `{handler.name}` refuses {stages} pipeline stages",
            "write `option.pipeline_parallel_degree=1`",
            lmi=lmi,
        )
    mpi = handler.further.get("mpi_mode") == "true"
    if mpi and case.said("mpi_mode").lower() == "false":
        return fails(
            "LMI-Dist refuses to start without MPI",
            "write `option.mpi_mode=true`",
            lmi=lmi,
        )
    return None


def _weights(case: _Case, handler: Handler) -> Verdict:
    """What becomes of the weights, once a handler has the folder."""
    lmi = case.release.lmi
    entry = case.config.get("quantization_config")
    asked = case.said("quantize")
    if asked and not entry:
        return compiles(
            f"`option.quantize` is {asked} and the weights are float: they are"
            " quantized at every start",
            "quantize them ahead of time and remove `option.quantize`",
            lmi=lmi,
        )
    if isinstance(entry, dict):
        told = str(entry.get("quant_method", ""))
        if asked and told.partition("-")[0] not in asked and asked not in told:
            return fails(
                f"`option.quantize` is {asked}, the folder says {told}",
                "remove `option.quantize`",
                lmi=lmi,
            )
        fault = _kernel_fault(case, handler, entry)
        if fault:
            return fails(fault, "build for this release, or use a newer one", lmi=lmi)
    return loads(
        f"handler `{handler.name}` loads the folder with {_library(case, handler)}",
        lmi=lmi,
        notes=tuple(_notes(case, handler)),
    )


def _library(case: _Case, handler: Handler) -> str:
    version = case.release.computes_with(handler)
    if version:
        return f"vLLM {version}"
    if handler.library == "deepspeed":
        return f"DeepSpeed {case.release.deepspeed}"
    return f"transformers {case.release.transformers}"


def _kernel_fault(case: _Case, handler: Handler, entry: Mapping[str, Any]) -> str:
    """Why no kernel of the version reads the weights, on whichever GPU."""
    vllm = case.release.computes_with(handler)
    if not vllm:
        return ""
    try:
        scheme = read_scheme(entry)
    except Unsupported as error:
        return error.message
    reads = any(
        scheme.packing in row.packings and row.in_version(vllm) and row.holds(scheme)
        for row in kernels().values()
    )
    if reads:
        return ""
    return (
        f"vLLM {vllm} has no kernels for {scheme.weight_bits}-bit {scheme.packing}"
        " weights of this kind"
    )


def _notes(case: _Case, handler: Handler) -> Iterator[str]:
    """What can still go wrong."""
    if case.said("rolling_batch") == _REMOVED and handler.rolling_batch != _REMOVED:
        yield "LMI-Dist is gone from this release: vLLM takes its place"
    older = is_older(case.release.transformers)
    if older and "rope_parameters" in case.config and "rope_theta" not in case.config:
        yield (
            "`config.json` has `rope_parameters` alone, which transformers"
            f" {case.release.transformers} ignores: it would take another base for"
            " rotary embeddings"
        )
    if handler.library == "vllm" and not case.said("max_model_len"):
        yield (
            "without `option.max_model_len` vLLM takes all positions of the model, and"
            " ends where their cache has no room"
        )

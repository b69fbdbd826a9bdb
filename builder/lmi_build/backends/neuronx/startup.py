"""
What a Neuron container of LMI does with a folder when it starts: does it compile?

The loader takes a folder for compiled by one word in `config.json` and by names, makes
its graphs again from `serving.properties`, and looks each up among the NEFFs by hash.
It compares neither the compiler nor a number with what was compiled. This is the same
decision, made from a listing and small texts, with what would then go wrong.

Source: djl-serving 0.26.0-dlc to 0.34.0-dlc, `TNXModelLoader`; `PyModel.java` and
`ModelInfo.java` for the server; transformers-neuronx `module.py` and `base.py`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.backends.folder import read_text
from lmi_build.backends.java_properties import java_properties, with_environment
from lmi_build.backends.neuronx.front_ends import (
    ENTRY_POINT,
    GRAPHS_DIR,
    neuron_front_ends,
)
from lmi_build.backends.neuronx.layout import CONFIG_NAME
from lmi_build.backends.neuronx.loader_call import NEURON_BLOCK, loader_call
from lmi_build.backends.neuronx.property_reader import RefusedError
from lmi_build.backends.neuronx.startup_graphs import (
    BUILD,
    MOUNT,
    Case,
    verdict_on_graphs,
)
from lmi_build.backends.verdicts import Verdict, compiles, elsewhere, fails
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.errors import VerifyFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.folder import Folder
    from lmi_build.catalog.neuron_releases import NeuronRelease

PROPERTIES_NAME = "serving.properties"
_HANDLER = "model.py"
_PYTHON = "Python"


def neuron_startup(
    folder: Folder,
    lmi: str,
    *,
    environment: Mapping[str, str] | None = None,
) -> Verdict:
    """
    What one release does with a folder at start-up.

    Args:
        folder: What lies at `/opt/ml/model`.
        lmi: Version of LMI such as `0.30.0`.
        environment: Variables of the container beside those of its image.

    Raises:
        KeyError: That version of LMI has no handler of Transformers NeuronX.

    Example:
        `neuron_startup(local_folder(path), "0.30.0").outcome` is `loads` or says why
        not.
    """
    front = neuron_front_ends()[lmi]
    surroundings = environment or {}
    entries: dict[str, str] = {}
    if folder.has(PROPERTIES_NAME):
        try:
            entries = java_properties(read_text(folder, PROPERTIES_NAME))
        except (ValueError, VerifyFailed) as error:
            return fails(
                f"{PROPERTIES_NAME} cannot be read: {error}",
                "write `key=value` lines in printable ASCII",
                lmi=lmi,
            )
    case = Case(
        folder=folder,
        front=front,
        release=_release(lmi),
        properties=with_environment(entries, surroundings),
        environment=surroundings,
        lmi=lmi,
    )
    return _server_refused(case) or _decided(case)


def neuron_startup_everywhere(
    folder: Folder, *, environment: Mapping[str, str] | None = None
) -> tuple[Verdict, ...]:
    """The verdict of every release with this loader, newest first."""
    return tuple(
        neuron_startup(folder, lmi, environment=environment)
        for lmi in neuron_front_ends()
    )


def _release(lmi: str) -> NeuronRelease:
    rows = neuron_releases().values()
    return next(
        row for row in rows if row.version == lmi and row.container == "djl-neuronx"
    )


def _server_refused(case: Case) -> Verdict | None:
    """What the server does before the handler is asked."""
    model_id = case.properties.get("option.model_id", "").strip()
    if model_id and model_id.rstrip("/") != MOUNT:
        return elsewhere(
            f"`option.model_id` is {model_id}: the container loads that instead",
            "remove `option.model_id`: the graphs lie beside serving.properties",
            lmi=case.lmi,
        )
    engine = case.properties.get("engine", "")
    if engine not in {"", _PYTHON}:
        return fails(
            f"engine {engine} starts another server than the handler needs",
            f"write `engine={_PYTHON}`",
            lmi=case.lmi,
        )
    entry = case.properties.get("option.entryPoint")
    if entry is not None and entry != ENTRY_POINT:
        return Verdict(
            lmi=case.lmi,
            outcome="skips",
            reason=f"`option.entryPoint` is {entry}, which loads no graphs",
            fix=f"write `option.entryPoint={ENTRY_POINT}`",
        )
    if entry is None and case.folder.has(_HANDLER):
        return Verdict(
            lmi=case.lmi,
            outcome="skips",
            reason=f"{_HANDLER} answers instead of the container's handler",
            fix=f"write `option.entryPoint={ENTRY_POINT}`, or remove {_HANDLER}",
        )
    return None


def _decided(case: Case) -> Verdict:
    config = _config(case)
    if isinstance(config, str):
        return fails(config, BUILD, lmi=case.lmi)
    paths = tuple(case.folder.sizes)
    try:
        call = loader_call(
            case.front,
            case.properties,
            config,
            environment=case.environment,
            paths=paths,
        )
    except RefusedError as refused:
        if refused.undecided and NEURON_BLOCK not in config:
            return _compiled(case, config)
        return Verdict(
            lmi=case.lmi,
            outcome=refused.outcome,
            reason=refused.reason,
            fix=refused.fix,
        )
    if not call.graphs:
        return _compiled(case, config)
    return verdict_on_graphs(case, config, call)


def _config(case: Case) -> dict[str, Any] | str:
    """`config.json`, or why the handler cannot read it."""
    if not case.folder.has(CONFIG_NAME):
        return f"there is no {CONFIG_NAME} at the root, which the handler reads first"
    try:
        document = json.loads(read_text(case.folder, CONFIG_NAME))
    except (ValueError, RecursionError, VerifyFailed):
        return f"{CONFIG_NAME} at the root is not JSON"
    if not isinstance(document, dict):
        return f"{CONFIG_NAME} at the root holds no object"
    return document


def _compiled(case: Case, config: Mapping[str, Any]) -> Verdict:
    """Why the folder does not count as compiled, or what is left to compile."""
    names = case.folder.names()
    weights = [name for name in names if name.endswith((".safetensors", ".bin"))]
    graphs = any(path.startswith(f"{GRAPHS_DIR}/") for path in case.folder.sizes)
    if NEURON_BLOCK in config and weights and graphs:
        return compiles(
            f"`{weights[0]}` lies at the root, so the loader ignores `{GRAPHS_DIR}/`",
            "remove the weights from the root",
            lmi=case.lmi,
        )
    if NEURON_BLOCK in config and not graphs:
        return compiles(
            f"there is no `{GRAPHS_DIR}/`, so every graph is compiled",
            BUILD,
            lmi=case.lmi,
        )
    where = f" beside `{GRAPHS_DIR}/`" if graphs else ""
    reason = f"{CONFIG_NAME} has no `{NEURON_BLOCK}` block{where}"
    if not weights:
        return fails(
            f"{reason}, and there are no weights at the root", BUILD, lmi=case.lmi
        )
    return compiles(f"{reason}, so it is a model to be compiled", BUILD, lmi=case.lmi)


__all__ = ["MOUNT", "Verdict", "neuron_startup", "neuron_startup_everywhere"]

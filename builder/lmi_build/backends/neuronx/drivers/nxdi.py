"""
Compiles a decoder with NxD Inference, as the vLLM of LMI does.

Steps of a call:

    save_quantized_state_dict    int8 weights, for the step that follows
    compile                      graphs into one file, weights by core, settings

Sources: NxD Inference 0.1.1 and 0.9 models/application_base.py and models/config.py;
AWS's vLLM, branch v0.6.x-neuron, model_executor/model_loader/neuronx_distributed.py.
"""

from __future__ import annotations

import importlib
import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import Fault, check_arguments, plain, say, symbol

if TYPE_CHECKING:
    from .common import Session

_SETTINGS = "neuron_config.json"
_QUANTIZED = "quantized_checkpoints_path"
_DROPPED = "Unexpected keyword arguments"
_PRETRAINED = "neuronx_distributed_inference.utils.hf_adapter.load_pretrained_config"


class _Dropped(logging.Handler):
    """Hears what the configuration says of names that it does not know."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        if _DROPPED in record.getMessage():
            self.heard.append(record.getMessage())


def build(session: Session) -> None:
    """Configure, compile and save the model of a call."""
    given = session.call["arguments"]
    kind = symbol(session.call["model_class"])
    check_arguments(build_arguments, given, what="a call of NxD Inference")
    arguments = session.make(given["neuron_config"])
    if arguments.get(_QUANTIZED):
        Path(arguments[_QUANTIZED]).mkdir(parents=True, exist_ok=True)
    say("step", name="configure")
    settings = _neuron_config(kind, arguments)
    loaded = symbol(_PRETRAINED)(session.model)
    config = kind.get_config_cls()(settings, load_config=loaded)
    model = kind(session.model, config)
    for name, words in session.call["steps"]:
        say("step", name=name)
        if name == "save_quantized_state_dict":
            kind.save_quantized_state_dict(session.model, config)
        elif name == "compile":
            model.compile(**session.make(words))
        else:
            raise Fault("neuronx.call-refused", f"`{name}` is no step of this loader")
    _finish(session, arguments)
    _tell(session, model)


def build_arguments(neuron_config: Any) -> None:
    """What a call of this loader may hold."""


def _neuron_config(kind: Any, arguments: dict[str, Any]) -> Any:
    """The configuration, unless it warns of a name that it drops."""
    listener = _Dropped()
    root = logging.getLogger()
    root.addHandler(listener)
    try:
        made = kind.get_neuron_config_cls()(**arguments)
    finally:
        root.removeHandler(listener)
    if listener.heard:
        raise Fault(
            "neuronx.swallowed-argument",
            f"NxD Inference drops what it was given: {listener.heard[0]}",
        )
    return made


def _finish(session: Session, arguments: dict[str, Any]) -> None:
    """Drop what only the build needed, and the paths of its folders."""
    path = Path(session.result) / _SETTINGS
    document = json.loads(path.read_text("utf-8"))
    document.pop("_name_or_path", None)
    if arguments.get(_QUANTIZED):
        folder = Path(arguments[_QUANTIZED])
        shutil.rmtree(folder)
        document["neuron_config"][_QUANTIZED] = folder.name
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    path.write_text(text, "utf-8")


def _tell(session: Session, model: Any) -> None:
    """What was really made, for the manifest and for whoever must load it."""
    compiler = importlib.import_module("neuronxcc")
    session.keep("compiler_version", str(compiler.__version__))
    session.keep("compiled_by", "compile")
    session.keep("model_class", f"{type(model).__module__}.{type(model).__name__}")
    session.keep("num_neffs", 0)
    document = json.loads((Path(session.result) / _SETTINGS).read_text("utf-8"))
    session.keep("neuron_config", document["neuron_config"])
    effective = {}
    for wrapper in getattr(model, "models", ()):
        effective[str(wrapper.tag)] = plain(wrapper.neuron_config.buckets)
    flags = {str(wrapper.tag): str(wrapper.compiler_args) for wrapper in model.models}
    session.keep("compiler_flags", flags)
    session.keep("effective", effective)

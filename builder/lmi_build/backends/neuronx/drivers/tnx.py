"""
Compiles a decoder with transformers-neuronx, as LMI's own partition script does.

Steps of a call:

    to_neuron, cpu_compile   compile; without a device the former becomes the latter
    save                     graphs, and with `sharded_weights` the weights by core
    checkpoint               the weights as they are, beside the graphs (LMI 0.28, 0.29)
    save_pretrained_split    the weights as one file a tensor (LMI 0.26, 0.27)

Sources: transformers-neuronx 0.13 base.py, module.py, modeling_auto.py, compiler.py;
djl-serving 0.30.0-dlc neuron_utils/model_loader.py `partition`.
"""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import Fault, check_arguments, plain, say, symbol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .common import Session

_AUTO = "transformers_neuronx.NeuronAutoModelForCausalLM"
_BUCKETS = (
    "token_buckets",
    "context_buckets",
    "batch_sizes",
    "context_batch_sizes",
    "unroll",
    "context_unroll",
)
# What classes do not name, hand to the model's configuration and take from there. LMI's
# loader passes it to every class.
_OVERRIDES = {
    "GPT2ForSampling": ("n_positions",),
    "GPT2ForSamplingWithContextBroadcasting": ("n_positions",),
}
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")


def build(session: Session) -> None:
    """Load, compile and save the model of a call."""
    arguments = session.call["arguments"]
    path = session.call["model_class"]
    loader = symbol(path)
    chosen = chosen_class(session.model) if path == _AUTO else loader
    known = _OVERRIDES.get(chosen.__name__, ())
    check_arguments(chosen, arguments, what=chosen.__name__, known=known)
    _count_graphs(session)
    say("step", name="from_pretrained")
    model = loader.from_pretrained(session.model, **session.make(arguments))
    session.keep("model_class", f"{chosen.__module__}.{chosen.__name__}")
    saved = []
    for name, given in session.call["steps"]:
        say("step", name=name)
        if name in ("to_neuron", "cpu_compile"):
            session.keep("compiled_by", _compile(session, model))
        elif name == "save":
            saved.append(_save(session, model, given))
        elif name == "checkpoint":
            _copy_checkpoint(session, given)
        elif name == "save_pretrained_split":
            _split_checkpoint(session, given)
        else:
            raise Fault("neuronx.call-refused", f"`{name}` is no step of this loader")
    _tell(session, model, saved)


def chosen_class(folder: str) -> Any:
    """The class that the automatic one would take for a model."""
    module = importlib.import_module("transformers_neuronx.modeling_auto")
    config = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    kind = config.get("model_type")
    classes: Mapping[str, Any] = module.NEURON_MODEL_FOR_CAUSAL_LM_MAPPING
    if kind not in classes:
        raise Fault(
            "neuronx.no-class",
            f"transformers-neuronx has no class for the model type `{kind}`, only for"
            f" {', '.join(sorted(classes))}",
            kind="unsupported",
        )
    return classes[kind]


def _compile(session: Session, model: Any) -> str:
    """Compile on the device, or without one where the library can; says which."""
    if session.device:
        model.to_neuron()
        return "to_neuron"
    if not hasattr(model, "cpu_compile"):
        version = session.versions.get("transformers-neuronx", "")
        raise Fault(
            "neuronx.device-needed",
            f"transformers-neuronx {version} compiles a {type(model).__name__} only"
            " where there is a Neuron device",
            kind="tool",
            hints=("build on an inf2 or trn1 instance",),
        )
    model.cpu_compile()
    return "cpu_compile"


def _save(session: Session, model: Any, given: Mapping[str, Any]) -> str:
    """Write the graphs and the compiler's version beside them; returns the folder."""
    check_arguments(model.save, given, what="save")
    made = session.make(given)
    _separate(model)
    model.save(**made)
    folder = str(made["directory"])
    compiler = importlib.import_module("neuronxcc")
    (Path(folder) / "VERSION").write_text(str(compiler.__version__), "utf-8")
    return folder


def _separate(model: Any) -> None:
    """
    Give every rank's tensor memory of its own.

    Without a device a tensor that all ranks have, such as the scales of int8, is one
    tensor many times, and safetensors refuses to write that.
    """
    for layer in getattr(getattr(model, "decoder_lm_head", None), "layers", ()):
        for shards in layer.extra_parameters:
            if isinstance(shards, list):
                shards[1:] = [shard.clone() for shard in shards[1:]]


def _copy_checkpoint(session: Session, given: Mapping[str, Any]) -> None:
    """The model's own files where its weights are read from."""
    folder = Path(session.make(given)["directory"])
    folder.mkdir(exist_ok=True)
    source = Path(session.model)
    names = {path.name for pattern in _WEIGHTS for path in source.glob(pattern)}
    names |= {"config.json", "generation_config.json"}
    for name in sorted(names):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _split_checkpoint(session: Session, given: Mapping[str, Any]) -> None:
    """The weights as one file a tensor, written by the toolchain itself."""
    folder = session.make(given)["directory"]
    split = symbol("transformers_neuronx.module.save_pretrained_split")
    auto = symbol("transformers.AutoModelForCausalLM")
    split(auto.from_pretrained(session.model), folder)


def _count_graphs(session: Session) -> None:
    """
    Say a line for each graph that is compiled.

    Graphs are compiled in forked processes, which inherit the function set here; it is
    called with a graph that is finished, so that no name changes.
    """
    compiler: Any = importlib.import_module("transformers_neuronx.compiler")
    original = getattr(compiler, "compile_hlo_module", None)
    if original is None:
        return

    def counted(*positional: Any, **named: Any) -> Any:
        made = original(*positional, **named)
        session.graph()
        return made

    compiler.compile_hlo_module = counted


def _tell(session: Session, model: Any, saved: list[str]) -> None:
    """What was really made, for the manifest and for whoever must load it."""
    compiler = importlib.import_module("neuronxcc")
    session.keep("compiler_version", str(compiler.__version__))
    session.keep("compiler_flags", _flags())
    effective = {
        name: plain(getattr(model, name)) for name in _BUCKETS if hasattr(model, name)
    }
    config = getattr(model, "neuron_config", None)
    if config is not None:
        mode = plain(getattr(config, "group_query_attention", None))
        effective["group_query_attention"] = mode
        # Newer releases have a method for it, which says the same.
        session.keep("neuron_config", plain(config))
    session.keep("effective", effective)
    found = sorted(
        path.name for folder in saved for path in Path(folder).glob("*.neff")
    )
    session.keep("num_neffs", len(found))
    session.keep("graphs", [name.partition(".")[0] for name in found])
    _write_config(session, str(compiler.__version__))


def _flags() -> list[str] | None:
    """The compiler's flags, with those that the library adds; None where it is mute."""
    module = importlib.import_module("transformers_neuronx.compiler")
    known = getattr(module, "get_compiler_flags", None)
    return None if known is None else shlex.split(known())


def _write_config(session: Session, compiler: str) -> None:
    """The root's `config.json`, where `neuron` tells LMI that graphs are ready."""
    if session.block is None:
        return
    config = json.loads((Path(session.model) / "config.json").read_text("utf-8"))
    config["neuron"] = {**session.block, "compiler_version": compiler}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    Path(session.path("config.json")).write_text(text, "utf-8")

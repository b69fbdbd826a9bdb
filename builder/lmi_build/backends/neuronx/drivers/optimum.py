"""
Exports a decoder with optimum-neuron.

A call with `export` among its arguments is one of the older generation, over
transformers-neuronx, and makes the model by `from_pretrained`; one with `neuron_config`
is of the newer one, over NeuronX Distributed, and makes it by `export`.

Step of a call:

    save_pretrained    graphs, weights and settings

Sources: optimum-neuron v0.0.20 to v0.0.27 neuron/modeling_decoder.py; v0.4.2 to v0.4.5
neuron/models/inference/modeling_utils.py and backend/pretrained_model.py.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import Fault, check_arguments, plain, say, symbol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .common import Session

_CHECKPOINT = "checkpoint"
_BUCKETS = ("token_buckets", "context_buckets", "batch_sizes", "context_batch_sizes")


def build(session: Session) -> None:
    """Export and save the model of a call."""
    given = session.call["arguments"]
    loader = symbol(session.call["model_class"])
    newer = "neuron_config" in given
    name = "export" if newer else "from_pretrained"
    # The older one hands what it does not name itself on to `_export`.
    known: Iterable[str] = ()
    if not newer:
        known = inspect.signature(loader._export).parameters  # noqa: SLF001 - read only
    check_arguments(getattr(loader, name), given, what=name, known=known)
    if not newer and not session.device:
        raise Fault(
            "neuronx.device-needed",
            "this optimum-neuron exports only where there is a Neuron device",
            kind="tool",
            hints=("build on an inf2 or trn1 instance",),
        )
    say("step", name=name)
    model = getattr(loader, name)(session.model, **session.make(given))
    session.keep("compiled_by", name)
    session.keep("model_class", f"{type(model).__module__}.{type(model).__name__}")
    for step, arguments in session.call["steps"]:
        if step != "save_pretrained":
            raise Fault("neuronx.call-refused", f"`{step}` is no step of this loader")
        say("step", name=step)
        model.save_pretrained(**session.make(arguments))
    if newer:
        _save_weights(session, model)
    forget_paths(Path(session.result))
    _tell(session, model, newer=newer)


def _save_weights(session: Session, model: Any) -> None:
    """
    Split the weights over cores, where the library did not.

    It does when the model's settings know the folder they came from, which those of a
    text model inside a larger one do not.
    """
    place = Path(session.result) / _CHECKPOINT
    if not (place / "weights").is_dir():
        say("step", name="shard_checkpoint")
        model.shard_checkpoint(src_path=session.model, dest_path=str(place))


def forget_paths(result: Path) -> None:
    """Take the path of the model's folder out of what was saved."""
    for name in ("config.json", "neuron_config.json"):
        path = result / name
        if not path.is_file():
            continue
        document = json.loads(path.read_text("utf-8"))
        document.pop("_name_or_path", None)
        text = json.dumps(document, indent=2, sort_keys=True) + "\n"
        path.write_text(text, "utf-8")


def _tell(session: Session, model: Any, *, newer: bool) -> None:
    """What was really made, for the manifest and for whoever must load it."""
    compiler = importlib.import_module("neuronxcc")
    session.keep("compiler_version", str(compiler.__version__))
    graphs = sorted(path.stem for path in Path(session.result).rglob("*.neff"))
    session.keep("num_neffs", len(graphs))
    session.keep("graphs", graphs)
    if newer:
        # A type of PyTorch says `torch.bfloat16` of itself, a call `bfloat16`.
        words = {
            name: value.split(".")[1] if str(value).startswith("torch.") else value
            for name, value in plain(vars(model.neuron_config)).items()
        }
        session.keep("neuron_config", words)
        session.keep("effective", words)
        return
    inner = model.model
    effective = {
        name: plain(getattr(inner, name)) for name in _BUCKETS if hasattr(inner, name)
    }
    config = getattr(inner, "neuron_config", None)
    if config is not None:
        session.keep("neuron_config", plain(config))
        mode = plain(getattr(config, "group_query_attention", None))
        effective["group_query_attention"] = mode
    session.keep("effective", effective)
    session.keep("block", plain(model.config.neuron))

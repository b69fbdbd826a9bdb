"""
Encoders by `torch_neuronx.trace`: one graph for each length, and reference answers.

What the graph computes is put together here: pooling and normalisation as the model's
own files say. The float model answers a few texts on the processor first, and these
answers are kept, so that anybody can see later whether model, tokenizer and pooling
were the right ones; where there is a device the graphs answer them as well.
"""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import Fault, check_arguments, symbol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .common import Session

# Shapes: B texts of a batch, T tokens, H width of the states, L labels.
REFERENCE = "reference.json"
REFERENCE_SCHEMA = "lmi-build/encoder-reference/v1"
TASKS = ("feature-extraction", "text-classification", "token-classification")
FLAGS = (
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len"),
)
# Texts that a tokenizer must get right: case, accents, other scripts, signs, spaces.
TEXTS = (
    "A graph is compiled once and answers many requests.",
    "The quick brown fox jumps over the lazy dog, twice!",
    "Stra\u00dfe, caf\u00e9, na\u00efve: \u20ac 3.50 (about 10 %)",
    "\u673a\u5668\u5b66\u4e60 and \u043c\u043e\u0434\u0435\u043b\u044c",
    "  two  spaces  and UPPER case  ",
    "no",
)
FILLER = "one more word "
# The first transformers that can be told how to compute attention.
EAGER_SINCE = (4, 36)


def build(session: Session) -> None:
    """Compile every graph of the call and keep what the float model says."""
    import torch

    arguments = session.call["arguments"]
    if arguments["task"] not in TASKS:
        raise Fault("neuronx.call-refused", f"`{arguments['task']}` is no task")
    settings = read_settings(session.model, arguments)
    module = graph_module(load_model(session), arguments, settings)
    rows = reference_rows(session, settings)
    with torch.no_grad():
        for row in rows:
            found = module(*tensors_of([row], len(row["ids"]), 1, arguments))
            row["output"] = found[0].tolist()
        graphs = {
            step["length"]: trace_graph(session, module, step)
            for _, step in session.call["steps"]
        }
        compared = compare(session, rows, graphs)
    write_reference(session, rows)
    for name, value in settings.items():
        session.keep(name, value)
    session.keep("task", arguments["task"])
    session.keep("inputs", arguments["inputs"])
    session.keep("batch_size", arguments["batch_size"])
    session.keep("padding_id", arguments["padding_id"])
    session.keep("graphs", {str(length): file for length, (file, _) in graphs.items()})
    session.keep("reference", REFERENCE)
    effective = {
        "task": arguments["task"],
        "batch_size": arguments["batch_size"],
        "lengths": sorted(graphs),
    }
    session.keep("effective", effective)
    session.keep("compared", compared)


def load_model(session: Session) -> Any:
    """The float model, with every weight of it from the model's own files."""
    import torch
    import transformers

    factory = symbol(session.call["model_class"])
    options = {}
    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if release >= EAGER_SINCE:
        # Other implementations branch on values that a graph does not have.
        options["attn_implementation"] = "eager"
    model, report = factory.from_pretrained(
        session.model, output_loading_info=True, local_files_only=True, **options
    )
    # A pooler that the weights lack is not part of the graph either.
    missing = [name for name in sorted(report["missing_keys"]) if "pooler." not in name]
    missing += sorted(map(str, report.get("mismatched_keys", ())))
    if missing:
        raise Fault(
            "neuronx.missing-weights",
            f"the model's files lack {len(missing)} tensors of"
            f" `{type(model).__name__}`, first `{missing[0]}`, which would be random",
            hints=["name a model that was trained for this task"],
        )
    model.config.return_dict = True
    return model.to(torch.float32).eval()


def read_settings(model: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """How a text becomes tokens and states become an answer, from the model's files."""
    config = read_json(Path(model) / "config.json")
    if arguments["task"] != "feature-extraction":
        labels = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        names = [labels[key] for key in sorted(labels, key=int)]
        return {
            "labels": names,
            "activation": activation(config, len(names)),
            "strip": False,
            "lower": False,
        }
    found = sentence_settings(Path(model)) or {}
    pooling = arguments["pooling"] or found.get("pooling")
    if not pooling:
        raise Fault("neuronx.call-refused", "neither call nor model names a pooling")
    normalize = arguments["normalize"]
    if normalize is None:
        normalize = found.get("normalize", False)
    return {
        "pooling": pooling,
        "normalize": normalize,
        "strip": found.get("strip", False),
        "lower": found.get("lower", False),
    }


def activation(config: Mapping[str, Any], num_labels: int) -> str:
    """As `TextClassificationPipeline` of transformers chooses it."""
    problem = config.get("problem_type")
    if problem == "regression":
        return "none"
    if problem == "multi_label_classification" or num_labels == 1:
        return "sigmoid"
    return "softmax"


def sentence_settings(model: Path) -> dict[str, Any] | None:
    """Of sentence-transformers; None where it did not save the model."""
    if not (model / "modules.json").is_file():
        return None
    rows = json.loads((model / "modules.json").read_text("utf-8"))
    kinds = [str(row.get("type", "")).rpartition(".")[2] for row in rows]
    if kinds not in (
        ["Transformer", "Pooling"],
        ["Transformer", "Pooling", "Normalize"],
    ):
        raise Fault(
            "neuronx.sentence-module",
            f"the sentence encoder has the modules {', '.join(kinds)}",
            kind="unsupported",
        )
    document = read_json(model / str(rows[1]["path"]) / "config.json")
    named = document.get("pooling_mode")
    if named is None:
        pooling = [name for flag, name in FLAGS if document.get(flag)]
    else:
        wanted = {named} if isinstance(named, str) else set(named)
        pooling = [name for _, name in FLAGS if name in wanted]
    settings = sorted(model.glob("sentence_*_config.json"))
    lower = bool(settings and read_json(settings[0]).get("do_lower_case"))
    return {
        "pooling": pooling,
        "normalize": "Normalize" in kinds,
        "strip": True,
        "lower": lower,
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def graph_module(
    model: Any, arguments: Mapping[str, Any], settings: Mapping[str, Any]
) -> Any:
    """The module that is traced: int64 `[B, T]` inputs, one float32 tensor."""
    import torch

    names = list(arguments["inputs"])
    pools = list(settings.get("pooling", ()))
    normalize = bool(settings.get("normalize", False))

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            inputs = dict(zip(names, tensors))  # noqa: B905 - Python 3.8
            answer = self.model(**inputs)[0]
            if not pools:
                return answer  # [B, L] or [B, T, L]
            mask = inputs["attention_mask"]
            parts = [pool(name, answer, mask) for name in pools]
            vector = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            if normalize:
                length = torch.sqrt((vector * vector).sum(dim=1, keepdim=True))
                vector = vector / torch.clamp(length, min=1e-12)
            return vector  # [B, H]

    return Graph().eval()


def pool(name: str, states: Any, mask: Any) -> Any:
    """
    One vector for each text.

    Args:
        name: How.
        states: `[B, T, H]`.
        mask: 1 for tokens, 0 for padding, `[B, T]`.

    Source: sentence-transformers, `models/Pooling.py`.
    """
    import torch

    if name == "cls":
        return states[:, 0]
    weights = mask.unsqueeze(-1).to(states.dtype)
    if name == "max":
        return torch.where(weights > 0, states, torch.full_like(states, -1e9)).max(
            dim=1
        )[0]
    total = (states * weights).sum(dim=1)
    count = torch.clamp(weights.sum(dim=1), min=1e-9)
    return total / (torch.sqrt(count) if name == "mean_sqrt_len" else count)


def prepared(text: str, settings: Mapping[str, Any]) -> str:
    """A text as sentence-transformers hands it to the tokenizer."""
    text = text.strip() if settings["strip"] else text
    return text.lower() if settings["lower"] else text


def reference_rows(
    session: Session, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Texts and their tokens: some short ones, and one that fills each graph."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(session.model) / "tokenizer.json"))
    tokenizer.no_padding()
    lengths = [step["length"] for _, step in session.call["steps"]]
    asked = [(text, lengths[-1]) for text in TEXTS]
    asked += [(FILLER * length, length) for length in lengths]
    rows = []
    for text, length in asked:
        tokenizer.enable_truncation(max_length=length)
        found = tokenizer.encode(prepared(text, settings))
        rows.append(
            {
                "text": text,
                "length": length,
                "ids": list(found.ids),
                "type_ids": list(found.type_ids),
            }
        )
    return rows


def tensors_of(
    rows: Sequence[Mapping[str, Any]],
    length: int,
    batch_size: int,
    arguments: Mapping[str, Any],
) -> tuple[Any, ...]:
    """Inputs of a graph, padded on the right and below."""
    import torch

    ids = torch.full((batch_size, length), arguments["padding_id"], dtype=torch.long)
    mask = torch.zeros((batch_size, length), dtype=torch.long)
    types = torch.zeros((batch_size, length), dtype=torch.long)
    # A row without any token would divide by nothing.
    mask[:, 0] = 1
    for place, row in enumerate(rows):
        size = len(row["ids"])
        ids[place, :size] = torch.tensor(row["ids"], dtype=torch.long)
        types[place, :size] = torch.tensor(row["type_ids"], dtype=torch.long)
        mask[place, :size] = 1
    named = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return tuple(named[name] for name in arguments["inputs"])


def trace_graph(session: Session, module: Any, step: Mapping[str, Any]) -> Any:
    """Compile one graph and save it; returns its file and the graph."""
    import torch

    trace = symbol("torch_neuronx.trace")
    arguments = session.call["arguments"]
    inputs = tensors_of([], step["length"], arguments["batch_size"], arguments)
    options = {"compiler_args": list(step["compiler_args"])}
    if not session.device:
        options.update(without_device(trace))
    check_arguments(trace, options, what="torch_neuronx.trace")
    session.graph()
    with warnings.catch_warnings():
        # It only warns of names that it does not know.
        warnings.filterwarnings("error", message="Unexpected keyword arguments")
        graph = trace(module, inputs, **options)
    torch.jit.save(graph, session.path(step["file"]["path"]))
    return step["file"]["path"], graph


def without_device(trace: Any) -> dict[str, Any]:
    """What tracing needs where there is no device."""
    if "cpu_backend" in inspect.signature(trace).parameters:
        return {"cpu_backend": True}
    version = str(symbol("torch_neuronx.__version__"))
    if version.startswith("1."):
        return {}
    raise Fault(
        "neuronx.no-device",
        f"torch-neuronx {version} traces only where a Neuron device is",
        kind="tool",
        hints=["run the build on the target, or choose a newer release"],
    )


def write_reference(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """What the float model answers."""
    document = {"schema": REFERENCE_SCHEMA, "rows": list(rows)}
    text = json.dumps(document, indent=None, sort_keys=True) + "\n"
    Path(session.path(REFERENCE)).write_text(text, "utf-8")


def compare(
    session: Session, rows: Sequence[Mapping[str, Any]], graphs: Mapping[int, Any]
) -> dict[str, Any] | None:
    """How far the graphs are from the float model; None where no device answers."""
    import torch

    if not session.device:
        return None
    arguments = session.call["arguments"]
    cosines, worst = [], 0.0
    for row in rows:
        length = min(size for size in graphs if size >= len(row["ids"]))
        inputs = tensors_of([row], length, arguments["batch_size"], arguments)
        found = graphs[length][1](*inputs)[0].to(torch.float64)
        wanted = torch.tensor(row["output"], dtype=torch.float64)
        if arguments["task"] == "token-classification":
            found = found[: len(row["ids"])]
        a, b = found.flatten(), wanted.flatten()
        worst = max(worst, float((a - b).abs().max()))
        scale = max(float(a.norm() * b.norm()), 1e-30)
        cosines.append(float(torch.dot(a, b)) / scale)
    return {"rows": len(rows), "max_abs": worst, "min_cosine": min(cosines)}

"""
Serves an encoder's compiled graphs from DJL Serving's Python engine, as `model.py`.

The file stands alone: beside it lie `lmi_build.json` (bounds), `tokenizer.json` and the
engine folder with `neuron.json` and one TorchScript file for each length. It needs
torch, torch-neuronx and tokenizers, which the container has.

A graph takes one number of texts and one number of tokens. Texts are sorted by length,
padded to the shortest graph that holds them, and as many go into one pass as the graph
takes; no answer depends on its neighbours. A text over the bound is refused with status
413, never cut, unless the request says `"truncate": true`.

Requests: `{"inputs": TEXT or [TEXT, ...], "parameters": {...}}`. The answer is a list
with one entry for each text: a vector, labels with scores, or tokens with labels.

Source: djl-serving 0.25.0-dlc to 0.34.0-dlc, `engines/python/setup/djl_python/
{inputs,outputs,service_loader}.py` and `PyPredictor.java` for batches of requests.
"""

from __future__ import annotations

import difflib
import json
import threading
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# Shapes: B texts of a batch, T tokens, H width of a vector, L labels.
SETTINGS_NAME, RECORD_NAME = "lmi_build.json", "neuron.json"
TOKENIZER_NAME = "tokenizer.json"
BOUND_NAMES = ("max_input_len", "max_batch_size")
EMBEDDING = "feature-extraction"
CLASSIFICATION = "text-classification"
TOKENS = "token-classification"
# Texts of one request; SageMaker takes bodies up to 6 MB.
MAX_TEXTS = 512
# The label of tokens that are no entity, as transformers leaves it out.
OUTSIDE = "O"


class BoundExceeded(ValueError):
    """The request asks for more than the artifact promises; says both numbers."""


class InvalidRequest(ValueError):
    """The request is not understood; names the field."""


class EngineBroken(RuntimeError):
    """The artifact's files do not make an engine, or its answer is no number."""


@dataclass(frozen=True)
class Text:
    """
    One text, or a pair of them.

    Args:
        text: The text.
        pair: The second one; None for a single text.
    """

    text: str
    pair: str | None = None


@dataclass(frozen=True)
class Parameters:
    """
    What a request may ask for beside its texts.

    Args:
        truncate: Cut a text that is over the bound instead of refusing it.
        top_k: Labels that are told, 0 for all.
    """

    truncate: bool = False
    top_k: int = 0


@dataclass(frozen=True)
class Request:
    """
    A checked request.

    Args:
        texts: At least one.
        parameters: Checked ones.
    """

    texts: tuple[Text, ...]
    parameters: Parameters


def read_request(document: Any, task: str) -> Request:
    """
    Check the body of a request.

    Args:
        document: As it came.
        task: What the engine answers.

    Raises:
        InvalidRequest: It has another form.
        BoundExceeded: It has more than `MAX_TEXTS` texts.
    """
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object with `inputs`")
    unknown = sorted(set(document) - {"inputs", "parameters"})
    if unknown:
        raise InvalidRequest(f"unknown field `{unknown[0]}`")
    if "inputs" not in document:
        raise InvalidRequest("`inputs` is missing")
    return Request(
        texts=read_texts(document["inputs"], task),
        parameters=read_parameters(document.get("parameters"), task),
    )


def read_texts(inputs: Any, task: str) -> tuple[Text, ...]:
    """
    The texts of `inputs`.

    Raises:
        InvalidRequest: It is neither a text nor a list of them.
        BoundExceeded: There are more than `MAX_TEXTS`.
    """
    rows = inputs if isinstance(inputs, list) else [inputs]
    if not rows:
        raise InvalidRequest("`inputs` has no texts")
    if len(rows) > MAX_TEXTS:
        raise BoundExceeded(
            f"`inputs` has {len(rows)} texts, at most {MAX_TEXTS} are taken at once"
        )
    return tuple(_read_text(row, task) for row in rows)


def _read_text(row: Any, task: str) -> Text:
    if isinstance(row, str):
        return Text(row)
    if task != CLASSIFICATION:
        raise InvalidRequest("`inputs` must be a text or a list of texts")
    if (
        isinstance(row, dict)
        and set(row) in ({"text"}, {"text", "text_pair"})
        and all(isinstance(value, str) for value in row.values())
    ):
        return Text(row["text"], row.get("text_pair"))
    raise InvalidRequest(
        "`inputs` must be texts, or objects with `text` and `text_pair`"
    )


def read_parameters(document: Any, task: str) -> Parameters:
    """
    The `parameters` of a request.

    Raises:
        InvalidRequest: A parameter is unknown or has a wrong value.
    """
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise InvalidRequest("`parameters` must be an object")
    known = ["truncate", *(["top_k"] if task == CLASSIFICATION else [])]
    for name in document:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f", did you mean `{near[0]}`?" if near else ""
            raise InvalidRequest(f"unknown parameter `{name}`{hint}")
    truncate = document.get("truncate")
    if truncate is not None and not isinstance(truncate, bool):
        raise InvalidRequest(f"`truncate` is {truncate!r}, it must be true or false")
    top_k = document.get("top_k")
    if top_k is not None and (
        not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1
    ):
        raise InvalidRequest(f"`top_k` is {top_k!r}, it must be 1 or more")
    return Parameters(truncate=bool(truncate), top_k=top_k or 0)


class Engine:
    """
    A loaded artifact.

    Calls from several threads are safe: the graphs are used by one of them at a time.

    Args:
        root: The artifact's folder.

    Raises:
        EngineBroken: A file is missing, damaged or not what it should be.
    """

    def __init__(self, root: Path) -> None:
        import torch

        # Its operations are in the saved graphs, which do not load without it.
        import_module("torch_neuronx")
        from tokenizers import Tokenizer

        # Any, as neither says the types of what is used here.
        self._torch: Any = torch
        self._whole: Any
        self._cut: Any
        root = Path(root)
        settings = _read_json(root / SETTINGS_NAME)
        self.bounds = _read_bounds(settings)
        folder = root / str(settings.get("engine_dir", "engine"))
        self._record = _read_json(folder / RECORD_NAME)
        self.task = str(self._record.get("task"))
        self._graphs: dict[int, Any] = {}
        files = _read_graphs(self._record, self.bounds)
        try:
            # The whole text is counted before a cut one is taken.
            self._whole = Tokenizer.from_file(str(root / TOKENIZER_NAME))
            self._cut = Tokenizer.from_file(str(root / TOKENIZER_NAME))
            self._cut.enable_truncation(max_length=self.bounds["max_input_len"])
            for length, name in files.items():
                path = str(folder / name)
                self._graphs[length] = self._torch.jit.load(path).eval()
        except Exception as error:
            raise EngineBroken(f"the engine does not load: {error}") from error
        self._whole.no_truncation()
        self._whole.no_padding()
        self._cut.no_padding()
        self._lock = threading.Lock()

    def generate(self, inputs: Any, parameters: Mapping[str, Any]) -> list[Any]:
        """
        Answer one text or several.

        Returns:
            One entry for each text.

        Raises:
            BoundExceeded: A text is too long, or there are too many.
            InvalidRequest: Something is wrong with the request.
        """
        document = {"inputs": inputs, "parameters": dict(parameters)}
        request = read_request(document, self.task)
        answers = self.answer([(request, self.tokenize(request))])
        return list(answers[0])

    def tokenize(self, request: Request) -> list[Any]:
        """
        The tokens of each text.

        Raises:
            BoundExceeded: A text is over the bound and may not be cut.
        """
        tokenizer = self._cut if request.parameters.truncate else self._whole
        found, most = [], self.bounds["max_input_len"]
        for place, text in enumerate(request.texts):
            row = tokenizer.encode(*map(self._prepared, _parts(text)))
            if len(row.ids) > most:
                which = f"text {place + 1}" if len(request.texts) > 1 else "the text"
                raise BoundExceeded(
                    f"{which} has {len(row.ids)} tokens, this artifact takes at most"
                    f" max_input_len = {most}; shorten it, or send the parameter"
                    " `truncate: true`"
                )
            if not row.ids:
                raise InvalidRequest("`inputs` has a text without tokens")
            found.append(row)
        return found

    def answer(self, requests: Sequence[tuple[Request, Sequence[Any]]]) -> list[Any]:
        """
        Answer several requests with as few passes as they need.

        Args:
            requests: Each with the tokens of its texts.

        Returns:
            For each request a list with one entry for each text.
        """
        rows = [row for _, tokens in requests for row in tokens]
        outputs = iter(self._compute(rows))
        return [
            [self._entry(next(outputs), row, request.parameters) for row in tokens]
            for request, tokens in requests
        ]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, all of them."""
        return list(self._whole.encode(self._prepared(text)).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self._whole.decode(list(ids)))

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        """
        Refuse: an encoder answers no chat.

        Raises:
            InvalidRequest: Always.
        """
        raise InvalidRequest(f"an encoder answers no chat of {len(messages)} messages")

    def lines(self, inputs: str, parameters: Mapping[str, Any]) -> Iterator[Any]:
        """
        Refuse: there is nothing that could come piece by piece.

        Raises:
            InvalidRequest: Always.
        """
        del inputs, parameters
        raise InvalidRequest("`stream` is for generated text; an encoder has none")

    def _prepared(self, text: str) -> str:
        """As sentence-transformers hands a text to its tokenizer."""
        text = text.strip() if self._record.get("strip") else text
        return text.lower() if self._record.get("lower") else text

    def _compute(self, rows: Sequence[Any]) -> list[Any]:
        """One tensor for each row, in order: `[H]`, `[L]` or `[T, L]`."""
        torch = self._torch
        size = self.bounds["max_batch_size"]
        order = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
        found: list[Any] = [None] * len(rows)
        for start in range(0, len(order), size):
            places = order[start : start + size]
            longest = len(rows[places[-1]].ids)
            length = min(bucket for bucket in self._graphs if bucket >= longest)
            inputs = self._tensors([rows[place] for place in places], length)
            with self._lock, torch.no_grad():
                output = self._graphs[length](*inputs)
            output = output[: len(places)].float()
            if not bool(torch.isfinite(output).all()):
                raise EngineBroken("the graph's answer has values that are no numbers")
            for place, row in zip(places, output):  # noqa: B905 - Python 3.9
                found[place] = row
        return found

    def _tensors(self, rows: Sequence[Any], length: int) -> tuple[Any, ...]:
        """Inputs of a graph, int64 `[B, T]`, padded on the right and below."""
        torch = self._torch
        shape = (self.bounds["max_batch_size"], length)
        ids = torch.full(shape, self._record["padding_id"], dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.long)
        types = torch.zeros(shape, dtype=torch.long)
        # A row that is padding alone attends to one token: to none is no number.
        mask[:, 0] = 1
        for place, row in enumerate(rows):
            ids[place, : len(row.ids)] = torch.tensor(row.ids, dtype=torch.long)
            types[place, : len(row.ids)] = torch.tensor(row.type_ids, dtype=torch.long)
            mask[place, : len(row.ids)] = 1
        named = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return tuple(named[name] for name in self._record["inputs"])

    def _entry(self, output: Any, tokens: Any, parameters: Parameters) -> Any:
        if self.task == EMBEDDING:
            return output.tolist()
        if self.task == CLASSIFICATION:
            return self._labels(output, parameters.top_k)
        return self._entities(output, tokens)

    def _scores(self, logits: Any) -> Any:
        kind = self._record["activation"]
        if kind == "softmax":
            return logits.softmax(-1)
        return logits.sigmoid() if kind == "sigmoid" else logits

    def _labels(self, logits: Any, top_k: int) -> list[dict[str, Any]]:
        """Labels of a text, the likeliest first."""
        scores = self._scores(logits).tolist()
        names = self._record["labels"]
        order = sorted(range(len(names)), key=lambda index: -scores[index])
        if top_k:
            order = order[:top_k]
        return [{"label": names[index], "score": scores[index]} for index in order]

    def _entities(self, logits: Any, tokens: Any) -> list[dict[str, Any]]:
        """Tokens that are part of something, as transformers' pipeline tells them."""
        scores = logits[: len(tokens.ids)].softmax(-1)
        found = []
        for index, special in enumerate(tokens.special_tokens_mask):
            best = int(scores[index].argmax())
            label = self._record["labels"][best]
            if special or label == OUTSIDE:
                continue
            start, end = tokens.offsets[index]
            found.append(
                {
                    "entity": label,
                    "score": float(scores[index][best]),
                    "index": index,
                    "word": tokens.tokens[index],
                    "start": start,
                    "end": end,
                }
            )
        return found


def _parts(text: Text) -> tuple[str, ...]:
    return (text.text,) if text.pair is None else (text.text, text.pair)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise EngineBroken(f"`{path.name}` cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise EngineBroken(f"`{path.name}` is not a JSON object")
    return document


def _read_bounds(settings: Mapping[str, Any]) -> dict[str, int]:
    bounds = settings.get("bounds")
    if not isinstance(bounds, dict):
        raise EngineBroken(f"`{SETTINGS_NAME}` has no bounds")
    for name in BOUND_NAMES:
        if not isinstance(bounds.get(name), int) or bounds[name] < 1:
            raise EngineBroken(f"`{SETTINGS_NAME}` has no bound `{name}`")
    return {name: bounds[name] for name in BOUND_NAMES}


def _read_graphs(
    record: Mapping[str, Any], bounds: Mapping[str, int]
) -> dict[int, str]:
    """Files of the graphs by length; they must be those of the bounds."""
    graphs = record.get("graphs")
    if not isinstance(graphs, dict) or not graphs:
        raise EngineBroken(f"`{RECORD_NAME}` names no graphs")
    files = {int(length): str(name) for length, name in graphs.items()}
    found = (max(files), record.get("batch_size"))
    if found != (bounds["max_input_len"], bounds["max_batch_size"]):
        raise EngineBroken(
            f"the graphs take {found[1]} texts of {found[0]} tokens, the bounds are"
            f" {bounds['max_batch_size']} of {bounds['max_input_len']}"
        )
    return dict(sorted(files.items()))


_ENGINE_LOCK = threading.Lock()
_ENGINES: dict[str, Engine] = {}


def _engine(root: str) -> Engine:
    with _ENGINE_LOCK:
        if root not in _ENGINES:
            _ENGINES[root] = Engine(Path(root))
        return _ENGINES[root]


def handle(inputs: Any) -> Any:
    """
    DJL Serving's entry point.

    The first request is empty: the front end sends it to have the model loaded, and
    waits `model_loading_timeout` for the answer. Later the front end may join requests
    of several clients. It gives all of them one status, so that a request that is
    refused among others gets its error as the body of an answer with status 200.

    Args:
        inputs: `djl_python.Input`.

    Returns:
        `djl_python.Output`; for a single request status 400 where it is wrong, 413
        where it is over a bound.
    """
    from djl_python import Output

    root = inputs.get_property("model_dir") or str(Path(__file__).parent)
    engine = _engine(root)
    if inputs.is_empty():
        return Output()
    if not inputs.is_batch():
        request, fault = _checked(engine, inputs)
        if fault is not None:
            return Output().error(
                fault["error"], code=fault["code"], message=fault["message"]
            )
        output = Output().add_property("content-type", "application/json")
        return output.add(_json(engine.answer([request])[0]))
    checked = [_checked(engine, item) for item in inputs.get_batches()]
    answers = iter(engine.answer([row for row, fault in checked if fault is None]))
    output = Output().add_property("content-type", "application/json")
    for index, (_, fault) in enumerate(checked):
        body = next(answers) if fault is None else fault
        output.add(_json(body), key="data", batch_index=index)
    return output


def _checked(engine: Engine, item: Any) -> tuple[Any, dict[str, Any] | None]:
    """A request with its tokens, or what is wrong with it."""
    if item.is_empty():
        return None, _fault(400, "bad request", "the body is empty")
    try:
        request = read_request(item.get_as_json(), engine.task)
        return (request, engine.tokenize(request)), None
    except BoundExceeded as error:
        return None, _fault(413, "over a bound", str(error))
    except InvalidRequest as error:
        return None, _fault(400, "bad request", str(error))
    except ValueError as error:
        return None, _fault(400, "bad request", f"the body is not JSON: {error}")


def _fault(code: int, message: str, error: str) -> dict[str, Any]:
    """The body of an error, as `Output.error` writes it."""
    return {"code": code, "message": message, "error": error}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

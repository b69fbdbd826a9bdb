"""
The verify stage of compiled encoders, on a machine without their cores.

Order: every hash, then the graphs' own records against the plan and the model's files,
then the float model: it is loaded here from the fetched files, reads the artifact's own
tokenizer, and must give the tokens and the answers that were kept when the graphs were
compiled. A wrong model, tokenizer, pooling or normalisation shows. Nothing here runs a
graph; what a device answered, the build recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lmi_build.backends.neuronx.encoders import EMBEDDING
from lmi_build.backends.neuronx.sentence import read_sentence
from lmi_build.backends.neuronx.trace_checks import (
    encoder_problems,
    read_record,
    read_reference,
)
from lmi_build.errors import VerifyFailed
from lmi_build.verify.integrity import refuse_if_damaged
from lmi_build.verify.proofs import REHEARSED, finish, note, report_head

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from lmi_build.digest import JSONValue
    from lmi_build.events import Emit
    from lmi_build.spi import Job

    Answers = list[npt.NDArray[np.float64]]

# Shapes: T tokens, H width of the states, L labels.
# Two releases of PyTorch add the same float32 numbers in another order; measured on
# encoders of up to 12 layers they differ in the sixth digit.
_RELATIVE = 1e-3


def run(job: Job, emit: Emit) -> None:
    """
    Write `job.out/verify.json`.

    Args:
        job: Inputs `package` and `model`; parameters `call` (a `NeuronCall` as JSON)
            and `rehearsal`.
        emit: Told of notes.

    Raises:
        VerifyFailed: `neuronx.encoder-artifact`: the folder is not what was planned;
            `neuronx.encoder-reference`: the float model answers otherwise.
    """
    params = cast("dict[str, Any]", job.params)
    root = job.inputs["package"]
    manifest = refuse_if_damaged(root)
    report = report_head(manifest, kind="trace", rehearsal=params["rehearsal"])
    if params["rehearsal"]:
        note(job, emit, "warning", "verify.rehearsal", REHEARSED)
    else:
        engine = root / str(manifest.serving["engine_dir"])
        model = job.inputs["model"]
        problems = encoder_problems(engine, model, params["call"])
        if problems:
            raise VerifyFailed(
                "; ".join(problems),
                code="neuronx.encoder-artifact",
                hints=("build the artifact again",),
            )
        record = read_record(engine)
        tokenizer = root / str(manifest.serving["tokenizer_dir"]) / "tokenizer.json"
        report["reference"] = check_reference(
            model, tokenizer, record, read_reference(engine), call=params["call"]
        )
        report["compared"] = record["compared"]
        _tell(job, emit, record)
        _tell_length(job, emit, model, record)
    finish(job, emit, manifest, report, None)


def _tell(job: Job, emit: Emit, record: Mapping[str, Any]) -> None:
    compared = record["compared"]
    if compared is None:
        message = (
            "no device was there when the graphs were compiled: how far they are from"
            " the float model was not measured"
        )
        note(job, emit, "warning", "verify.not-measured", message)
        return
    message = (
        f"on {compared['rows']} texts the graphs have cosine"
        f" {compared['min_cosine']:.6f} or more to the float model, and differ by"
        f" {compared['max_abs']:.2e} at most"
    )
    note(job, emit, "info", "verify.measured", message)


def _tell_length(job: Job, emit: Emit, model: Path, record: Mapping[str, Any]) -> None:
    """Whether texts may be longer than those that the model was trained with."""
    sentence, longest = read_sentence(model), max(map(int, record["graphs"]))
    trained = sentence.max_seq_length if sentence else None
    if trained is not None and longest > trained:
        message = (
            f"the model was trained with texts of {trained} tokens, the bound is"
            f" {longest}: sentence-transformers would cut what is longer, these graphs"
            " read it"
        )
        note(job, emit, "warning", "neuronx.encoder-untrained", message)


def check_reference(
    model: Path,
    tokenizer: Path,
    record: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    call: Mapping[str, Any],
) -> dict[str, JSONValue]:
    """
    Compare what the float model answers here with what it answered at the build.

    Args:
        model: Its folder.
        tokenizer: The artifact's `tokenizer.json`.
        record: What the driver says of the graphs.
        rows: Texts, tokens and answers.
        call: The `NeuronCall` as JSON.

    Returns:
        How many texts there were, and the largest relative difference.

    Raises:
        VerifyFailed: `neuronx.encoder-reference`.
    """
    _check_tokens(tokenizer, record, rows)
    worst = 0.0
    for row, found in zip(rows, float_answers(model, record, rows, call), strict=True):
        difference = _difference(row["output"], found)
        if not difference <= _RELATIVE:
            raise _other(
                f"to {row['text'][:40]!r} the float model answers otherwise here than"
                f" when the graphs were compiled: {difference:.2e} of the largest"
                f" number apart, at most {_RELATIVE:.0e} is rounding"
            )
        worst = max(worst, difference)
    return {"texts": len(rows), "max_relative_difference": worst}


def _difference(kept: Any, found: npt.NDArray[np.float64]) -> float:
    """Largest difference by the largest number; endless for another shape."""
    import numpy as np

    wanted = np.asarray(kept, np.float64)
    if wanted.shape != found.shape:
        return float("inf")
    return float(np.abs(wanted - found).max() / max(float(np.abs(wanted).max()), 1e-6))


def _check_tokens(
    path: Path, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    for row in rows:
        tokenizer.enable_truncation(max_length=row["length"])
        text = row["text"].strip() if record["strip"] else row["text"]
        found = tokenizer.encode(text.lower() if record["lower"] else text).ids
        if list(found) != row["ids"]:
            raise _other(
                f"the artifact's tokenizer makes {len(found)} tokens of"
                f" {row['text'][:40]!r}, other ones than the {len(row['ids'])} that the"
                " graphs were tried with"
            )


def float_answers(
    model: Path,
    record: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    call: Mapping[str, Any],
) -> Answers:
    """
    What the float model answers, one text after another without padding.

    Args:
        model: Its folder.
        record: Pooling and normalisation.
        rows: Tokens.
        call: The class that loads it, and its inputs.

    Returns:
        `[H]`, `[L]` or `[T, L]` for each text.
    """
    import torch
    import transformers

    factory = getattr(transformers, str(call["model_class"]).rpartition(".")[2])
    float_model = factory.from_pretrained(
        model, local_files_only=True, attn_implementation="eager"
    )
    float_model = float_model.to(torch.float32).eval()
    found = []
    for row in rows:
        tensors = {
            "input_ids": torch.tensor([row["ids"]]),
            "attention_mask": torch.ones((1, len(row["ids"])), dtype=torch.long),
            "token_type_ids": torch.tensor([row["type_ids"]]),
        }
        inputs = {name: tensors[name] for name in call["arguments"]["inputs"]}
        with torch.no_grad():
            answer = float_model(**inputs)[0][0]
        found.append(_vector(answer.double().numpy(), record))
    return found


def _vector(
    answer: npt.NDArray[np.float64], record: Mapping[str, Any]
) -> npt.NDArray[np.float64]:
    """The answer itself, or of `[T, H]` states the vector that they mean."""
    import numpy as np

    if record["task"] != EMBEDDING:
        return answer
    ways = {
        "cls": answer[0],
        "max": answer.max(axis=0),
        "mean": answer.mean(axis=0),
        "mean_sqrt_len": answer.sum(axis=0) / np.sqrt(len(answer)),
    }
    vector = np.concatenate([ways[name] for name in record["pooling"]])
    if not record["normalize"]:
        return vector
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _other(message: str) -> VerifyFailed:
    return VerifyFailed(
        message,
        code="neuronx.encoder-reference",
        hints=("build the artifact again from this model; do not replace its files",),
    )

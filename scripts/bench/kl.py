"""
How far a quantized model is from its float model, on held-out text.

Two commands, each one process of its own:

    kl.py windows --model DIR --split held-out --count 20 --length 512 --out W.json
    kl.py score --reference DIR --candidate DIR --windows W.json

`windows` cuts token windows out of the documentation topics that ship with Python
(`pydoc_data.topics`): topics sorted by key, even places are calibration text, odd
places are held out, so nobody is scored on what was calibrated on. `score` runs the
float model (transformers, float32) and the candidate on each window and prints JSON:
mean KL divergence per token in nats with its standard error over windows, agreement
of the most likely token, and perplexity of both.

A candidate is an ONNX Runtime GenAI engine folder (it has `genai_config.json`) or a
Hugging Face folder. Quantized checkpoints are unpacked by `unpack.py`, which shares
nothing with the packing code it judges, and computed in float32; where a checkpoint
says that activations are rounded, the inputs of its linears are.

Legend: T tokens of a window, V vocabulary, N windows, D width of the model, C rows of a
chunk of T.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

# `bench` is importable as the tests see it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.unpack import read_checkpoint, round_activations

if TYPE_CHECKING:
    import torch

    from bench.unpack import Checkpoint

Windows: TypeAlias = Sequence[Sequence[int]]
Logits: TypeAlias = "Callable[[Sequence[int]], torch.Tensor]"

SPLITS = ("calibration", "held-out")
# Rows whose probabilities are held in float64 at once; 64 x 49152 x 8 bytes = 24 MiB.
CHUNK_ROWS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """
    One candidate beside the float model.

    Args:
        candidate: Folder that was scored.
        num_windows: Windows compared.
        window_tokens: Tokens of one window.
        kl: Mean KL(float || candidate) per token, nats.
        kl_stderr: Standard error of `kl` over windows.
        top1: Share of tokens with the same most likely successor.
        perplexity: Of the candidate, on the windows' own next tokens.
        reference_perplexity: Of the float model on the same tokens.
        weight_bytes: Bytes of the candidate's model files.
        window_kl: `kl` of each window, so that two candidates can be compared in pairs.
    """

    candidate: str
    num_windows: int
    window_tokens: int
    kl: float
    kl_stderr: float
    top1: float
    perplexity: float
    reference_perplexity: float
    weight_bytes: int
    window_kl: tuple[float, ...]


def held_out_windows(ids: Sequence[int], *, count: int, length: int) -> list[list[int]]:
    """
    Windows spread evenly over `ids`, none overlapping.

    Raises:
        SystemExit: The text is too short.
    """
    whole = len(ids) // length
    if count > whole:
        sys.exit(f"{count} windows of {length} tokens asked for, the text has {whole}")
    starts = [(place * whole // count) * length for place in range(count)]
    return [list(ids[start : start + length]) for start in starts]


def calibration_windows(
    model: Path, *, count: int, length: int, seed: int = 0
) -> list[list[int]]:
    """
    The windows that the built-in quantizer draws.

    Drawn by its own worker's code, so that another tool is given the very same ones.
    """
    from lmi_build.events import ignore
    from lmi_build.quantizers.calibration import calibration_params
    from lmi_build.quantizers.calibration_windows import read_windows
    from lmi_build.spi import Job
    from lmi_build.values.recipe import CalibrationSpec

    spec = CalibrationSpec(num_samples=count, max_seq_len=length, seed=seed)
    job = Job(
        stage="bench",
        params={"calibration": calibration_params(spec)},
        inputs={"model": model},
        out=model,
        state=model,
    )
    return read_windows(job, ignore)


def write_windows(
    model: Path, *, split: str, count: int, length: int, out: Path
) -> None:
    """Write windows of one split, tokenized by the model's own tokenizer."""
    from lmi_build.quantizers.calibration import held_out_text, load_tokenizer

    if split == "calibration":
        windows = calibration_windows(model, count=count, length=length)
    else:
        tokenizer = load_tokenizer(model)
        ids = tokenizer.encode(held_out_text(), add_special_tokens=False).ids
        windows = held_out_windows(ids, count=count, length=length)
    out.write_text(json.dumps(windows))


def load_checkpoint(folder: Path) -> Any:
    """The folder's model in float32; a quantized one is unpacked first."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = folder.absolute()
    config = AutoConfig.from_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    quantization = raw.get("quantization_config")
    if quantization is None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    checkpoint = read_checkpoint(folder, quantization)
    missing, unexpected = model.load_state_dict(checkpoint.tensors, strict=False)
    untied = [name for name in missing if name != "lm_head.weight"]
    if untied or unexpected or (missing and not config.tie_word_embeddings):
        sys.exit(f"{folder}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    _round_inputs(model, checkpoint)
    return model.eval()


def _round_inputs(model: Any, checkpoint: Checkpoint) -> None:
    """Let quantized linears see their inputs as the run time rounds them."""
    how = checkpoint.activations
    if how is None:
        return
    for name in checkpoint.layers:
        scale = checkpoint.input_scales.get(name)

        def before(
            _: Any, inputs: tuple[torch.Tensor], scale: torch.Tensor | None = scale
        ) -> torch.Tensor:
            return round_activations(inputs[0], how, scale)

        model.get_submodule(name).register_forward_pre_hook(before)


def checkpoint_logits(folder: Path) -> Logits:
    """Logits (T, V) of a Hugging Face folder, float32."""
    import torch

    model = load_checkpoint(folder)

    def logits(ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            out: torch.Tensor = model(torch.tensor([list(ids)])).logits[0]
        return out

    return logits


def cached_logits(folder: Path, windows: Windows, cache: Path) -> Logits:
    """
    Logits (T, V) of a float folder whose last hidden states are kept between runs.

    What enters the head is a 50th of the logits in size and five sixths of the work.
    """
    import torch
    from safetensors.torch import load_file, save_file

    model = load_checkpoint(folder)
    head = model.get_output_embeddings()
    told = [f"{p.name} {p.stat().st_size}" for p in sorted(folder.iterdir())]
    text = json.dumps([str(folder.absolute()), told, list(map(list, windows))])
    path = cache / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        kept: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, x: kept.append(x[0][0]))
        with torch.inference_mode():
            for ids in windows:
                model(torch.tensor([list(ids)]))
        hook.remove()
        cache.mkdir(parents=True, exist_ok=True)
        save_file({"hidden_NTD": torch.stack(kept)}, path)
    hidden_NTD = load_file(path)["hidden_NTD"]
    places = {tuple(ids): at for at, ids in enumerate(windows)}

    def logits(ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            out: torch.Tensor = head(hidden_NTD[places[tuple(ids)]])
        return out

    return logits


def engine_logits(folder: Path) -> Logits:
    """Logits (T, V) of an ONNX Runtime GenAI engine, through its own runtime."""
    import numpy as np
    import onnxruntime_genai as og
    import torch

    model = og.Model(str(folder))

    def logits(ids: Sequence[int]) -> torch.Tensor:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(ids) + 1, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(np.asarray([list(ids)], dtype=np.int32))
        out = torch.from_numpy(np.array(generator.get_output("logits")[0]))
        if out.shape[0] != len(ids):
            sys.exit(f"{folder}: {out.shape[0]} rows of logits for {len(ids)} tokens")
        return out

    return logits


def compare(
    ids: Sequence[int], reference_tv: torch.Tensor, candidate_tv: torch.Tensor
) -> tuple[float, int, float, float]:
    """
    Compare one window's logits.

    Returns:
        Mean KL per token (nats), tokens with the same most likely successor, and the
        summed negative log likelihood of the window's own next tokens under the
        reference and under the candidate (nats).
    """
    import torch

    kl = nll_reference = nll_candidate = 0.0
    for start in range(0, len(ids), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        # Differences of float32 logits, sums in float64: good to 1e-7 nats.
        p_CV = reference_tv[rows] - reference_tv[rows].amax(-1, keepdim=True)
        q_CV = candidate_tv[rows] - candidate_tv[rows].amax(-1, keepdim=True)
        weight_CV = p_CV.exp()
        sum_p_C = weight_CV.sum(-1, dtype=torch.float64)
        log_p_C = sum_p_C.log()
        log_q_C = q_CV.exp().sum(-1, dtype=torch.float64).log()
        gap_C = (weight_CV * (p_CV - q_CV)).sum(-1, dtype=torch.float64) / sum_p_C
        kl += float((gap_C - log_p_C + log_q_C).sum())
        following = torch.tensor(list(ids[start + 1 : start + 1 + CHUNK_ROWS]))
        count, places = len(following), following.unsqueeze(-1)
        chosen_p_C = p_CV[:count].gather(-1, places)[:, 0].double()
        chosen_q_C = q_CV[:count].gather(-1, places)[:, 0].double()
        nll_reference += float((log_p_C[:count] - chosen_p_C).sum())
        nll_candidate += float((log_q_C[:count] - chosen_q_C).sum())
    same = int((reference_tv.argmax(-1) == candidate_tv.argmax(-1)).sum())
    return kl / len(ids), same, nll_reference, nll_candidate


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files: safetensors, or ONNX with its external data."""
    files = [*folder.glob("*.safetensors"), *folder.glob("*.onnx*")]
    return sum(path.stat().st_size for path in files)


def score(
    reference: Path, candidate: Path, windows: Windows, *, cache: Path | None = None
) -> Score:
    """Run both models over all windows; `cache` keeps the float model's states."""
    if cache is None:
        float_logits = checkpoint_logits(reference)
    else:
        float_logits = cached_logits(reference, windows, cache)
    is_engine = (candidate / "genai_config.json").exists()
    candidate_logits = (engine_logits if is_engine else checkpoint_logits)(candidate)
    kls: list[float] = []
    num_same, nll_reference, nll_candidate = 0, 0.0, 0.0
    for ids in windows:
        kl, same, nll_p, nll_q = compare(ids, float_logits(ids), candidate_logits(ids))
        kls.append(kl)
        num_same += same
        nll_reference += nll_p
        nll_candidate += nll_q
    num_tokens = sum(len(ids) for ids in windows)
    num_predicted = num_tokens - len(windows)
    return Score(
        candidate=candidate.name,
        num_windows=len(windows),
        window_tokens=len(windows[0]),
        kl=statistics.fmean(kls),
        kl_stderr=statistics.stdev(kls) / math.sqrt(len(kls)),
        top1=num_same / num_tokens,
        perplexity=math.exp(nll_candidate / num_predicted),
        reference_perplexity=math.exp(nll_reference / num_predicted),
        weight_bytes=weight_bytes(candidate),
        window_kl=tuple(kls),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    cut = commands.add_parser("windows", help="write token windows as JSON")
    cut.add_argument("--model", type=Path, required=True)
    cut.add_argument("--split", choices=SPLITS, required=True)
    cut.add_argument("--count", type=int, required=True)
    cut.add_argument("--length", type=int, required=True, help="tokens of a window")
    cut.add_argument("--out", type=Path, required=True)
    run = commands.add_parser("score", help="print the score as JSON")
    run.add_argument("--reference", type=Path, required=True)
    run.add_argument("--candidate", type=Path, required=True)
    run.add_argument("--windows", type=Path, required=True)
    run.add_argument("--threads", type=int, default=2)
    run.add_argument("--cache", type=Path, help="folder for the float model's states")
    return parser


def main() -> None:
    """Run one command."""
    args = _parser().parse_args()
    if args.command == "windows":
        write_windows(
            args.model,
            split=args.split,
            count=args.count,
            length=args.length,
            out=args.out,
        )
        return
    import torch

    torch.set_num_threads(args.threads)
    windows = json.loads(args.windows.read_text())
    found = score(args.reference, args.candidate, windows, cache=args.cache)
    print(json.dumps(asdict(found), indent=1))


if __name__ == "__main__":
    main()

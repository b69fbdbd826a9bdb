"""
Serves a Llama in NumPy from DJL Serving's Python engine, as `model.py`.

Shapes: T tokens, H hidden, N heads, K key-value heads, D of one head, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class BoundExceeded(ValueError):
    """The request is over a bound; says both numbers."""


class InvalidRequest(ValueError):
    """The request is not understood."""


class EngineBroken(RuntimeError):
    """The files make no engine."""


class Step(NamedTuple):
    """One token."""

    token_id: int
    text: str
    logprob: float
    finish_reason: str | None


class Engine:
    """A loaded artifact; `root` is its folder."""

    def __init__(self, root: Path) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        root = Path(root)
        settings = json.loads((root / "lmi_build.json").read_bytes())
        self.bounds: dict[str, int] = settings["bounds"]
        try:
            self._config = json.loads((root / "engine" / "config.json").read_bytes())
            stored = load_file(root / "engine" / "weights.safetensors")
        except Exception as error:
            raise EngineBroken(f"the engine cannot be read: {error}") from error
        self._weights = {n: v.astype(np.float32) for n, v in stored.items()}
        self._tokenizer = Tokenizer.from_file(str(root / "tokenizer.json"))
        end = self._config["eos_token_id"]
        self._ends = set(end if isinstance(end, list) else [end])

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Any) -> str:
        """Text of ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def apply_chat_template(self, messages: Any) -> str:
        """It has none."""
        del messages
        raise InvalidRequest("this engine has no chat template")

    def logits(self, ids: Any) -> np.ndarray:
        """float32 [T, V]."""
        self._refuse(len(ids), "max_seq_len")
        return self._forward(list(ids))

    def stream(self, prompt_ids: Any, parameters: Any) -> Any:
        """Tokens, the most likely each; the request is checked at the call."""
        return self._steps(list(prompt_ids), self._check(prompt_ids, parameters))

    def generate(self, inputs: Any, parameters: Any) -> Any:
        """LMI's answer to one text or several."""
        rows = [inputs] if isinstance(inputs, str) else list(inputs)
        self._refuse(len(rows), "max_batch_size")
        prompts = [self.encode(row) for row in rows]
        wanted = [self._check(ids, parameters) for ids in prompts]
        answers = [
            {"generated_text": "".join(step.text for step in self._steps(ids, num))}
            for ids, num in zip(prompts, wanted, strict=True)
        ]
        return answers[0] if isinstance(inputs, str) else answers

    def lines(self, inputs: str, parameters: Any) -> Any:
        """LMI's streamed answer."""
        ids = self.encode(inputs)
        shown = ""
        for step in self._steps(ids, self._check(ids, parameters)):
            shown += step.text
            token = {"id": step.token_id, "text": step.text, "log_prob": step.logprob}
            last = step.finish_reason is not None
            yield {"token": token, **({"generated_text": shown} if last else {})}

    def _refuse(self, asked: int, name: str) -> None:
        if asked > self.bounds[name]:
            raise BoundExceeded(f"{asked} is over {name} = {self.bounds[name]}")

    def _check(self, ids: Any, parameters: Any) -> int:
        unknown = set(parameters) - {"max_new_tokens"}
        if unknown or not len(ids):
            raise InvalidRequest(f"cannot do {sorted(unknown) or 'an empty prompt'}")
        wanted = parameters.get(
            "max_new_tokens", min(30, self.bounds["max_output_len"])
        )
        self._refuse(len(ids), "max_input_len")
        self._refuse(wanted, "max_output_len")
        return int(wanted)

    def _steps(self, ids: list[int], num: int) -> Any:
        made: list[int] = []
        shown = ""
        for count in range(1, num + 1):
            row = self._forward(ids + made)[-1]
            token = int(row.argmax())
            made.append(token)
            ended = token in self._ends
            text = self.decode(made)
            whole = text if count == num or ended else text.rstrip("\ufffd")
            new, shown = whole[len(shown) :], whole
            top = row.max()
            logprob = row[token] - top - np.log(np.exp(row - top).sum())
            reason = "eos_token" if ended else "length" if count == num else None
            yield Step(token, new, float(logprob), reason)
            if ended:
                return

    def _norm(self, x_TH: np.ndarray, name: str) -> np.ndarray:
        mean = (x_TH * x_TH).mean(-1, keepdims=True)
        scaled = x_TH / np.sqrt(mean + self._config["rms_norm_eps"])
        return np.asarray(scaled * self._weights[f"{name}.weight"])

    def _forward(self, ids: list[int]) -> np.ndarray:
        config, weights = self._config, self._weights
        x_TH = weights["model.embed_tokens.weight"][ids]
        for index in range(config["num_hidden_layers"]):
            name = f"model.layers.{index}"
            x_TH = x_TH + self._attend(
                self._norm(x_TH, f"{name}.input_layernorm"), name
            )
            y_TH = self._norm(x_TH, f"{name}.post_attention_layernorm")
            gate = y_TH @ weights[f"{name}.mlp.gate_proj.weight"].T
            gate = gate / (1 + np.exp(-gate))
            up = y_TH @ weights[f"{name}.mlp.up_proj.weight"].T
            x_TH = x_TH + (gate * up) @ weights[f"{name}.mlp.down_proj.weight"].T
        tied = config.get("tie_word_embeddings", False)
        head = "model.embed_tokens.weight" if tied else "lm_head.weight"
        return np.asarray(self._norm(x_TH, "model.norm") @ weights[head].T)

    def _attend(self, x_TH: np.ndarray, name: str) -> np.ndarray:
        config, weights = self._config, self._weights
        num, num_kv = config["num_attention_heads"], config["num_key_value_heads"]
        size = config.get("head_dim") or config["hidden_size"] // num
        length = len(x_TH)

        def project(part: str, heads: int) -> np.ndarray:
            y_TO = x_TH @ weights[f"{name}.self_attn.{part}.weight"].T
            return y_TO.reshape(length, heads, size).transpose(1, 0, 2)

        turns = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        angles = np.arange(length)[:, None] / config["rope_theta"] ** turns[None]
        cos, sin = (np.tile(f(angles), 2).astype(np.float32) for f in (np.cos, np.sin))

        def rotate(y_NTD: np.ndarray) -> np.ndarray:
            half = size // 2
            other = np.concatenate([-y_NTD[..., half:], y_NTD[..., :half]], -1)
            return y_NTD * cos + other * sin

        q_NTD, k_KTD = rotate(project("q_proj", num)), rotate(project("k_proj", num_kv))
        k_NTD = np.repeat(k_KTD, num // num_kv, 0)
        v_NTD = np.repeat(project("v_proj", num_kv), num // num_kv, 0)
        scores = q_NTD @ k_NTD.transpose(0, 2, 1) / np.float32(size) ** 0.5
        scores = np.where(np.tri(length, dtype=bool), scores, np.float32(-np.inf))
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores = scores / scores.sum(-1, keepdims=True)
        y_TO = (scores @ v_NTD).transpose(1, 0, 2).reshape(length, num * size)
        return np.asarray(y_TO @ weights[f"{name}.self_attn.o_proj.weight"].T)


_ENGINES: dict[str, Engine] = {}


def handle(inputs: Any) -> Any:
    """DJL Serving's entry point; the first request is empty and loads the engine."""
    from djl_python import Output

    root = inputs.get_property("model_dir") or str(Path(__file__).parent)
    if root not in _ENGINES:
        _ENGINES[root] = Engine(Path(root))
    if inputs.is_empty():
        return Output()
    try:
        document = inputs.get_as_json()
        wanted = document.get("parameters") or {}
        answer = _ENGINES[root].generate(document["inputs"], wanted)
    except BoundExceeded as error:
        return Output().error(str(error), code=413)
    except (InvalidRequest, KeyError, ValueError) as error:
        return Output().error(str(error), code=400)
    output = Output().add_property("content-type", "application/json")
    return output.add(json.dumps(answer, ensure_ascii=False))

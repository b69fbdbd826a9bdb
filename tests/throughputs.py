"""Published speeds of decoders, and the models they are of."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.devices import devices
from lmi_build.sizing.cost import Engine, Traffic, speed
from lmi_build.sizing.roofline import Decoder, Machine, prefill_seconds

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from lmi_build.values.ranges import Range

FILE = Path(__file__).parent / "fixtures" / "throughputs.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One number that somebody published, and what is predicted for it."""

    source: str
    device: str
    model: str
    bits: int
    batch_size: int
    num_ranks: int
    input_len: int
    output_len: int
    cores: int
    kind: str
    number: float

    def predicted(self) -> Range:
        """Output tokens a second of all ranks, or milliseconds to the first token."""
        decoder = decoder_of(
            self.model, self.bits, self.product, num_ranks=self.num_ranks
        )
        device = devices()[self.device]
        machine = Machine(
            num_ranks=self.num_ranks,
            flops_per_second=device.flops_per_second(self.product) / self.cores,
            memory_bytes_per_second=device.memory_bytes_per_second / self.cores,
            link_bytes_per_second=(device.link_bytes_per_second or 0) / self.cores,
        )
        if self.kind == "first_token_ms":
            found = prefill_seconds(decoder, machine, num_tokens=self.input_len)
            return found.times(1000)
        engine = Engine(decoder=decoder, machine=machine, batch_size=self.batch_size)
        traffic = Traffic(
            mean_input_len=self.input_len, mean_output_len=self.output_len
        )
        rate = speed(engine, traffic).requests_per_second
        return rate.times(self.output_len)

    @property
    def product(self) -> str:
        """8 bits are FP8 in all of these sources; 4 bits are of weights alone."""
        return "fp8" if self.bits == 8 else "fp16"

    @property
    def is_met(self) -> bool:
        """Whether what was measured lies in the predicted range."""
        found = self.predicted()
        return found.low <= self.number <= found.high


def tables() -> dict[str, Any]:
    """The data file."""
    return tomllib.loads(FILE.read_text("utf-8"))


def decoder_of(model: str, bits: int, product: str, *, num_ranks: int) -> Decoder:
    """A model of the file; an 8-bit cache goes with FP8, and a rank has whole heads."""
    sizes = tables()["models"][model]
    width = sizes["num_heads"] * sizes["head_dim"]
    kv_width = sizes["num_kv_heads"] * sizes["head_dim"]
    hidden, layers = sizes["hidden_size"], sizes["num_layers"]
    mlp = sizes["mlp_matrices"] * hidden * sizes["intermediate_size"]
    layer = hidden * (2 * width + 2 * kv_width) + mlp
    head = hidden * sizes["vocab_size"]
    params = layers * layer + head
    # Heads stay in 16 bits where weights have 4, and a group has a scale.
    read = params * bits // 8
    if bits == 4:
        read = layers * layer * 4.125 / 8 + head * 2
    cache_bytes = 1 if product == "fp8" else 2
    held = num_ranks * -(-sizes["num_kv_heads"] // num_ranks) * sizes["head_dim"]
    return Decoder(
        num_layers=layers,
        hidden_size=hidden,
        attention_width=width,
        num_active_params=params,
        weight_bytes=int(read),
        kv_bytes_per_token=2 * layers * held * cache_bytes,
    )


def measured() -> list[Measured]:
    """Every row of the file."""
    rows = []
    for name, table in tables()["measurements"].items():
        for row in table["rows"]:
            model, batch, ranks, input_len, output_len, number = row
            per = ranks if table.get("per_device") else 1
            rows.append(
                Measured(
                    source=name,
                    device=table["device"],
                    model=model,
                    bits=table["bits"],
                    batch_size=batch,
                    num_ranks=ranks,
                    input_len=input_len,
                    output_len=output_len,
                    cores=table.get("cores", 1),
                    kind=table["kind"],
                    number=number * per,
                )
            )
    return rows

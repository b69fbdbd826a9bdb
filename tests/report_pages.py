"""Report pages for tests: data of any size, and a strict parser."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from typing import Any

from lmi_build.checkpoint.layers import Layer, Layers, TensorClass
from lmi_build.numerics.intervals import Interval
from lmi_build.report.data import Answer, Reading, ReportData, StageCost

KINDS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})
ALLOWED_ATTRIBUTES = frozenset(
    {
        "aria-hidden",
        "aria-label",
        "aria-labelledby",
        "charset",
        "class",
        "content",
        "cx",
        "cy",
        "d",
        "dy",
        "fill",
        "fill-opacity",
        "focusable",
        "font-family",
        "font-size",
        "font-weight",
        "height",
        "href",
        "http-equiv",
        "id",
        "lang",
        "name",
        "opacity",
        "preserveaspectratio",
        "r",
        "role",
        "rx",
        "scope",
        "stroke",
        "stroke-linecap",
        "stroke-miterlimit",
        "stroke-width",
        "text-anchor",
        "transform",
        "viewbox",
        "width",
        "x",
        "x1",
        "x2",
        "y",
        "y1",
        "y2",
    }
)


def layers(blocks: int, *, kinds: tuple[str, ...] = KINDS, name: str = "") -> Layers:
    """Layers whose errors differ from each other."""
    made = [
        Layer(
            name=f"{name}model.layers.{block}.{kind}",
            shape=(64, 64),
            bits=4,
            num_bytes=2176,
            error=float(f"{0.001 * (1 + at) * math.exp(block / blocks):.4g}"),
            tokens=4096,
        )
        for block in range(blocks)
        for at, kind in enumerate(kinds)
    ]
    return Layers(
        layers=tuple(sorted(made, key=lambda layer: layer.name)),
        classes=(
            TensorClass(
                kind="quantized linears",
                num_tensors=len(made),
                num_weights=4096 * len(made),
                num_bytes=2176 * len(made),
            ),
            TensorClass(
                kind="embeddings", num_tensors=1, num_weights=19200, num_bytes=38400
            ),
        ),
        findings=("2 of 8 experts saw too little",),
    )


def reading(**changes: Any) -> Reading:
    """A measure that meets its gate."""
    values: dict[str, Any] = {
        "label": "KL divergence",
        "unit": "nats per token",
        "value": 0.07,
        "perfect": 0.0,
        "interval": Interval(low=0.06, high=0.08),
        "allowed": 0.16,
        "met": True,
        "weak": False,
        "meaning": "What is lost.",
    }
    return Reading(**{**values, **changes})


def report(**changes: Any) -> ReportData:
    """A page's data with everything on it."""
    values: dict[str, Any] = {
        "name": "tiny",
        "identity": "sha256:" + "ab" * 32,
        "summary": "tiny, weights in 4 bits by gptq.",
        "facts": (("Model", "tiny"), ("Bounds", "max_input_len 64")),
        "readings": (reading(),),
        "evidence": "Measured on 64 tokens.",
        "answers": (Answer(prompt="hello", text="world"),),
        "layers": layers(3),
        "sizes": (("Source model", 1000), ("Artifact", 400)),
        "stages": (
            StageCost(
                kind="quantize",
                seconds=1.5,
                cpu_seconds=2.5,
                peak_rss_bytes=1 << 20,
                out_bytes=400,
                cached=False,
            ),
        ),
        "tools": (("torch", "2.13.0"),),
        "digests": (("manifest", "sha256:" + "ab" * 32),),
    }
    return ReportData(**{**values, **changes})


class Page(HTMLParser):
    """Reads a page strictly: balanced tags, known attributes, no links out."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.text: list[str] = []
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Every attribute is one that the renderer writes."""
        self.tags.append(tag)
        for name, value in attrs:
            assert name in ALLOWED_ATTRIBUTES, f"{tag} has {name}={value!r}"
            if name == "href":
                assert str(value).startswith("#")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag that closes itself opens nothing."""
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        """Tags close in the order in which they were opened."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep what people read."""
        self.text.append(data)
        if self._open and self._open[-1] in {"h1", "h2", "h3"}:
            self.headings.append(self._open[-1])

"""
Drives the model builder that comes with onnxruntime-genai, as a library.

The builder has no interface for what we need of it: weights taken as they are, no
second quantization, progress, and a graph that does not depend on the machine. Five
of its functions are therefore replaced while it runs, in the worker's own process;
`_replaced` refuses a builder that no longer has them.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.errors import LmiBuildError, StageFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx_ir as ir

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BuilderHooks:
    """
    What replaces the builder's own methods.

    Args:
        load_quantized: `(num_layers) -> weights` for a quantized checkpoint.
        finish_graph: Changes the finished graph before it is written.
        stamp: Replaces the builder's mark of its version.
        on_layer: Called with the number of decoder blocks done so far.
        adapt_config: Changes the configuration before the builder reads it.
        correct: Changes what the builder read of it, before the graph is made.
    """

    load_quantized: Callable[[int], object]
    finish_graph: Callable[[ir.Model], None]
    stamp: Callable[[ir.Model], None]
    on_layer: Callable[[int], None]
    adapt_config: Callable[[Any], None]
    correct: Callable[[Any], None]


# Weights stay where they are, and nothing is asked of a hub.
_EXTRA_OPTIONS = ("shared_embeddings=false", "hf_token=false", "hf_remote=false")


def build_graph(
    checkpoint: Path,
    out: Path,
    scratch: Path,
    *,
    provider: str,
    accuracy_level: int,
    fuse_qkv: bool,
    hooks: BuilderHooks,
) -> None:
    """
    Write `model.onnx`, its data, `genai_config.json` and tokenizer files.

    Args:
        checkpoint: Hugging Face folder.
        out: Empty folder to fill.
        scratch: The builder's cache; may be removed afterwards.
        provider: `cpu` (computes in float32) or `cuda` (in float16).
        accuracy_level: Of every `MatMulNBits` that the builder emits.
        fuse_qkv: Make one product of the three projections of attention.
        hooks: See `BuilderHooks`.

    Raises:
        StageFailed: `compile.builder-failed` with the builder's own words, or
            `compile.builder-changed`.
    """
    builder = import_builder()
    asked = {
        "model_name": "",
        "input_path": str(checkpoint),
        "output_dir": str(out),
        # "int4" only means: leave quantized layers as MatMulNBits and compute the rest
        # in the provider's float. Nothing is quantized, see `finish_graph`.
        "precision": "int4",
        "execution_provider": provider,
        "cache_dir": str(scratch),
    }
    extra_options = [
        f"accuracy_level={accuracy_level}",
        f"fuse_qkv={str(fuse_qkv).lower()}",
        *_EXTRA_OPTIONS,
    ]
    with _replaced(builder, hooks), contextlib.redirect_stdout(sys.stderr):
        try:
            options = builder.parse_extra_options(**asked, extra_options=extra_options)
            builder.create_model(**asked, **options)
        except LmiBuildError:
            raise
        except (OSError, MemoryError):
            raise
        except Exception as error:
            _LOGGER.exception("the model builder failed")
            raise StageFailed(
                f"the model builder failed: {type(error).__name__}: {error}",
                code="compile.builder-failed",
                hints=(
                    "the stage's log has its whole story",
                    "try the version of onnxruntime-genai in scripts/constraints.txt",
                ),
            ) from error


def import_builder() -> Any:
    """
    Import the builder the way it wants to be imported.

    Its modules import each other by bare names (`builders`, `quantization`), so
    their folder goes on the path; a worker is one process for one stage.
    """
    package = importlib.import_module("onnxruntime_genai")
    folder = str(Path(str(package.__file__)).parent / "models")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module("builder")


@contextmanager
def _replaced(builder: Any, hooks: BuilderHooks) -> Iterator[None]:
    loader = importlib.import_module("loaders.quant_model").QuantModel
    model = builder.Model

    def from_pretrained(quant_type: str, **kwargs: Any) -> object:
        del quant_type
        return hooks.load_quantized(int(kwargs["num_layers"]))

    def to_nbits(self: Any) -> ir.Model:
        hooks.finish_graph(self.model)
        graph: ir.Model = self.model
        return graph

    def make_model(self: Any, input_path: str) -> None:
        _count_layers(self, hooks.on_layer)
        hooks.correct(self)
        make_model_before(self, input_path)

    def get_details(*args: Any, **kwargs: Any) -> Any:
        details = get_details_before(*args, **kwargs)
        hooks.adapt_config(details["hf_config"])
        return details

    get_details_before = _own_attribute(builder, "get_hf_details")
    make_model_before = model.make_model
    with contextlib.ExitStack() as stack:
        for owner, name, new in (
            (loader, "from_pretrained", staticmethod(from_pretrained)),
            (model, "to_nbits", to_nbits),
            (model, "stamp_build_metadata", staticmethod(hooks.stamp)),
            (model, "make_model", make_model),
            (builder, "get_hf_details", get_details),
        ):
            stack.callback(setattr, owner, name, _own_attribute(owner, name))
            setattr(owner, name, new)
        yield


def _own_attribute(owner: Any, name: str) -> Any:
    if name not in vars(owner):
        raise StageFailed(
            f"this onnxruntime-genai builder has no `{owner.__name__}.{name}`",
            code="compile.builder-changed",
            hints=("install onnxruntime-genai 0.18",),
        )
    return vars(owner)[name]


def _count_layers(instance: Any, on_layer: Callable[[int], None]) -> None:
    """Report each decoder block of this one model as it is done."""
    make_layer = instance.make_layer

    def counted(layer_id: int, layer: object) -> None:
        make_layer(layer_id, layer)
        on_layer(layer_id + 1)

    instance.make_layer = counted

"""The backend `echo`, as the planner knows it: without NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.errors import Problem
from lmi_build.spi import BackendStage, Finding, Proof, ProviderInfo, Serving
from lmi_build.text import did_you_mean, join_words
from lmi_build.values.stage import Estimate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.digest import JSONValue
    from lmi_build.spi import Host, Params
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import QuantSpec, Recipe

ARCHITECTURES = ("LlamaForCausalLM",)
# What the weights are kept in; every product is computed in float32.
STORED = ("float32", "float16")
OPTIONS: Mapping[str, tuple[str, ...]] = {"stored_dtype": STORED}
REQUIREMENTS = ("numpy", "safetensors", "tokenizers")
# float16 has 11 bits: half a unit in the last place of each weight, and its sums.
_ERRORS = {"float32": 2e-6, "float16": 5e-3}
_BASE_RAM_BYTES = 60_000_000
# Read once, here: what is lowered later opens no file.
_HANDLER = (Path(__file__).parent / "handler.py").read_text(encoding="utf-8")


class EchoBackend:
    """The checkpoint as it is, packed with a handler that needs NumPy alone."""

    info = ProviderInfo(
        name="echo",
        summary="Llama checkpoints as they are, computed in NumPy",
        distributions=REQUIREMENTS,
        salt=1,
        entry="lmi_build_echo.worker:run",
        targets=("cpu",),
        packings=("none",),
        modules=REQUIREMENTS,
    )

    def quantization(self, recipe: Recipe, model: ModelFacts) -> QuantSpec:
        """As the recipe says."""
        del model
        return recipe.quantize

    def check(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme
    ) -> Iterator[Problem]:
        """Yield every reason why this cannot be built."""
        spec, name = recipe.compile, model.geometry.architecture
        if spec.target != "cpu":
            yield _refusal(
                f"`echo` builds for `cpu`, not for `{spec.target}`",
                "compile.target",
                "set `target: cpu`",
            )
        if spec.tensor_parallel_size * spec.pipeline_parallel_size != 1:
            yield _refusal(
                "`echo` does not split a model",
                "compile.tensor_parallel_size",
                "set `tensor_parallel_size: 1`",
            )
        if name not in ARCHITECTURES or model.config.get("rope_scaling"):
            yield _refusal(
                f"`echo` does not compute `{name}` with this configuration",
                "model.source",
                f"use a plain {join_words(ARCHITECTURES)}",
            )
        if scheme.packing != "none":
            yield _refusal(
                f"`echo` does not read weights packed as `{scheme.packing}`",
                "quantize.method",
                "set `method: none`",
            )
        if recipe.bounds.max_beam_width != 1:
            yield _refusal(
                "`echo` searches with one beam",
                "bounds.max_beam_width",
                "set `max_beam_width: 1`",
            )
        yield from _option_problems(spec.options)

    def stages(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, host: Host
    ) -> tuple[BackendStage, ...]:
        """One: every tensor in its stored type, in one file."""
        del scheme, host
        stored = stored_dtype(recipe)
        values = sum(fact.num_elements for fact in model.tensors)
        disk = values * (4 if stored == "float32" else 2)
        return (
            BackendStage(
                kind="compile",
                entry=self.info.entry,
                salt=self.info.salt,
                params={"stored_dtype": stored},
                inputs={"checkpoint": "weights"},
                distributions=REQUIREMENTS,
                estimate=Estimate(
                    disk_bytes=disk, ram_bytes=_BASE_RAM_BYTES + 4 * values
                ),
                platform="any",
            ),
        )

    def serving(
        self,
        recipe: Recipe,
        model: ModelFacts,
        scheme: QuantScheme,
        host: Host,
        versions: Mapping[str, str],
    ) -> Serving:
        """A handler of the plugin's own: a text of the package like any other."""
        del model, scheme, host
        bounds = recipe.bounds
        pins = tuple(f"{name}=={versions[name]}" for name in REQUIREMENTS)
        return Serving(
            handler="",
            requirements=pins,
            properties={
                "engine": "Python",
                "option.entryPoint": "model.py",
                "option.rolling_batch": "disable",
                "batch_size": "1",
                "minWorkers": "1",
                "maxWorkers": "1",
            },
            engine_dir="engine",
            settings={
                "bounds": {
                    "max_input_len": bounds.max_input_len,
                    "max_output_len": bounds.max_output_len,
                    "max_seq_len": bounds.max_seq_len,
                    "max_batch_size": bounds.max_batch_size,
                }
            },
            files={
                "model.py": _HANDLER,
                "requirements.txt": "".join(f"{pin}\n" for pin in pins),
            },
        )

    def proof(
        self, recipe: Recipe, model: ModelFacts, scheme: QuantScheme, host: Host
    ) -> Proof:
        """It is loaded, asked and compared with the float model."""
        del model, scheme, host
        return Proof(
            distributions=REQUIREMENTS, relative_error=_ERRORS[stored_dtype(recipe)]
        )

    def diagnose(self, host: Host) -> Iterator[Finding]:
        """Whether its packages are here."""
        for name, version in host.versions(REQUIREMENTS).items():
            yield Finding(
                name=name,
                works=version is not None,
                evidence=version or "not installed",
                fix="" if version else f"pip install {name}",
            )


def stored_dtype(recipe: Recipe) -> str:
    """What weights are kept in; `check` has refused what is wrong."""
    value: JSONValue = recipe.compile.options.get("stored_dtype", STORED[0])
    return str(value)


def _refusal(message: str, path: str, hint: str) -> Problem:
    return Problem(
        code="compile.unsupported",
        message=message,
        path=path,
        hint=hint,
        unsupported=True,
    )


def _option_problems(options: Params) -> Iterator[Problem]:
    for name, value in options.items():
        path = f"compile.options.{name}"
        if name not in OPTIONS:
            near = did_you_mean(name, tuple(OPTIONS))
            yield Problem(
                code="compile.unknown-option",
                message=f"`echo` has no option `{name}`",
                path=path,
                hint=f"did you mean `{near}`?" if near else f"use {_names()}",
            )
        elif value not in OPTIONS[name]:
            yield Problem(
                code="compile.bad-option",
                message=f"`{name}` is {value!r}",
                path=path,
                hint=f"use {join_words(OPTIONS[name])}",
            )


def _names() -> str:
    return join_words(tuple(OPTIONS))


PROVIDER = EchoBackend()

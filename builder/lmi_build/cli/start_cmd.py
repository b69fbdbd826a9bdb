"""`init`, `schema` and `explain`: what a newcomer asks first."""

from __future__ import annotations

from pathlib import Path

import click

from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.render import data, say


@click.command()
@click.argument("file", type=click.Path(path_type=Path), default=Path("recipe.yaml"))
@click.option(
    "--model",
    default="HuggingFaceTB/SmolLM2-135M-Instruct",
    show_default=True,
    help="Hub repository, folder, s3:// prefix or .gguf file.",
)
@click.option(
    "--method",
    type=click.Choice(["none", "gptq", "int8"]),
    default="gptq",
    show_default=True,
    help="How weights become smaller.",
)
@click.option("--backend", default="onnxruntime", show_default=True, help="Compiler.")
@with_common_options
@click.pass_obj
def init(state: State, file: Path, model: str, method: str, backend: str) -> None:
    """Write a commented recipe to start from; an existing file is never changed."""
    from lmi_build.recipe.new_file import write_new
    from lmi_build.recipe.template import starter

    name = slug(model.rsplit("/", 1)[-1].removesuffix(".gguf"), method)
    text = starter(name=name, source=model, method=method, backend=backend)
    write_new(file, text, rename="lmi-build init FILE")
    say(state, f"wrote {file}; next: `lmi-build plan {file}`")
    if state.output != "text":
        data({"file": str(file)})


def slug(model: str, method: str) -> str:
    """A recipe name from a model's name."""
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in model.lower())
    words = [word for word in kept.split("-") if word] or ["model"]
    return f"{'-'.join(words)}-{method}"[:63].rstrip("-")


@click.command()
@with_common_options
@click.pass_obj
def schema(state: State) -> None:
    """Print the JSON Schema of recipes, for editors."""
    del state
    from lmi_build.recipe.schema import recipe_schema

    data(recipe_schema())


@click.command()
@click.argument("code", required=False)
@with_common_options
@click.pass_obj
def explain(state: State, code: str | None) -> None:
    """Explain an error code; without one, list them all."""
    from lmi_build.catalog.error_docs import load_error_docs
    from lmi_build.errors import UsageInvalid
    from lmi_build.text import did_you_mean

    docs = load_error_docs()
    if code is None:
        if state.output == "text":
            width = max(map(len, docs))
            for name, each in docs.items():
                click.echo(f"{name.ljust(width)}  {each.title}")
        else:
            data({name: each.title for name, each in docs.items()})
        return
    code = code.removeprefix("error[").removesuffix("]")
    doc = docs.get(code)
    if doc is None:
        near = did_you_mean(code, docs)
        hint = f"did you mean `{near}`?" if near else "`lmi-build explain` lists them"
        raise UsageInvalid(
            f"no error has the code `{code}`", code="explain.unknown", hints=(hint,)
        )
    if state.output == "text":
        click.echo(f"{code}: {doc.title}\n\ncause: {doc.cause}\nfix:   {doc.fix}")
    else:
        data({"code": code, "title": doc.title, "cause": doc.cause, "fix": doc.fix})

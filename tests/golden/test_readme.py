"""What the README shows is what a user sees."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

import gen_examples
from lmi_build.cli.main import cli, run
from lmi_build.cli.options import State

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def test_mistakes_are_shown_as_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's broken recipe gives exactly the README's errors."""
    recipes = [text for kind, text in BLOCKS if kind == "yaml" and "group_sise" in text]
    errors = [text for _, text in BLOCKS if text.startswith("error[")]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(recipes[0])

    status = run(["validate", "recipe.yaml", "--no-color"])

    assert status == 2
    assert capsys.readouterr().err.strip() == errors[0].strip()


def test_recipe_of_the_readme_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's first recipe loads as it stands."""
    recipe = next(text for kind, text in BLOCKS if kind == "yaml")
    (tmp_path / "recipe.yaml").write_text(recipe)
    monkeypatch.setenv("LMI_BUILD_CACHE", str(tmp_path / "store"))

    assert run(["validate", str(tmp_path / "recipe.yaml")]) == 0


@pytest.mark.slow
def test_examples_print_what_the_readme_shows() -> None:
    """Every console example is run; `scripts/gen_examples.py` would change nothing."""
    assert gen_examples.BLOCK.findall(README)
    assert gen_examples.with_output(README) == README


def test_commands_of_the_readme_parse() -> None:
    """Every `lmi-build` line in the README is accepted by the command line's parser."""
    lines = [
        line
        for _, text in BLOCKS
        for line in text.splitlines()
        if line.startswith("lmi-build ")
    ]
    assert lines
    for line in lines:
        name, *arguments = shlex.split(line)[1:]
        parent = click.Context(cli, obj=State(environ={}), **cli.context_settings)
        command = cli.get_command(parent, name)
        while isinstance(command, click.Group):
            parent = click.Context(command, info_name=name, parent=parent)
            name, *arguments = arguments
            command = command.get_command(parent, name)
        assert command is not None, line
        command.make_context(name, arguments, parent=parent).close()

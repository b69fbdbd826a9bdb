"""The corpus of malformed recipes: one fault each, with its place and its words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lmi_build.errors import RecipeInvalid
from lmi_build.recipe.load import load_recipe
from lmi_build.recipe.render import render_problems
from recipe_texts import describe

FIXTURES = Path(__file__).parents[1] / "fixtures" / "recipes"
GOLDEN = Path(__file__).parent / "recipe-errors.txt"
CORPUS = sorted(FIXTURES.glob("*.yaml"))
# What the files expect that cannot say so themselves: no text, or no more of it.
BESIDE = json.loads((FIXTURES / "expect.json").read_text(encoding="utf-8"))
_EXPECT = re.compile(r"# expect: (\S+ \d+:\d+)\n?\Z")


def expected(path: Path) -> str:
    """Code and place that a fixture states for itself."""
    if path.name in BESIDE:
        return str(BESIDE[path.name])
    match = _EXPECT.search(path.read_text(encoding="utf-8"))
    assert match is not None, f"{path.name} has no `# expect:` line"
    return match.group(1)


def fail(path: Path) -> RecipeInvalid:
    """The error of a malformed recipe."""
    with pytest.raises(RecipeInvalid) as caught:
        load_recipe(path)
    return caught.value


def test_the_corpus_is_large() -> None:
    """At least a hundred malformed recipes are kept, and none is listed in vain."""
    assert len(CORPUS) >= 100
    assert set(BESIDE) <= {path.name for path in CORPUS}


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_each_fault_has_its_code_and_place(path: Path) -> None:
    """One fault gives one problem: its code, where it stands, and a way out."""
    error = fail(path)

    assert [expected(path)] == [
        describe(error, index) for index in range(len(error.problems))
    ]
    assert error.exit_code == 2
    assert error.problems[0].hint


def test_the_words_are_kept(*, update_golden: bool) -> None:
    """Messages, hints and carets change only on purpose."""
    parts = []
    for path in CORPUS:
        drawn = render_problems(fail(path).problems, color=False)
        parts.append(f"# {path.name}\n{drawn.replace(str(path), path.name)}")
    text = "\n".join(parts)
    if update_golden:
        GOLDEN.write_text(text, encoding="utf-8")
    expected = GOLDEN.read_text(encoding="utf-8")

    assert expected == text

"""Problems drawn for people."""

from __future__ import annotations

from lmi_build.errors import Problem, Span
from lmi_build.recipe.render import render_problems


def problem(source: str, column: int, length: int, hint: str = "mend it") -> Problem:
    """A problem on line 14."""
    span = Span(file="r.yaml", line=14, column=column, length=length, source=source)
    return Problem(
        code="bounds.too-long", message="too long", path="a.b", hint=hint, span=span
    )


def test_the_house_form() -> None:
    """Code, message, place, path, line, caret, hint: in this order."""
    drawn = render_problems([problem("  max_input_len: 4608", 18, 4)], color=False)

    assert drawn == (
        "error[bounds.too-long]: too long\n"
        "  --> r.yaml:14:18  a.b\n"
        "   |\n"
        "14 |   max_input_len: 4608\n"
        "   |                  ^^^^\n"
        "hint: mend it\n"
    )


def test_a_hint_is_drawn_once() -> None:
    """The same way out is not repeated below each problem."""
    drawn = render_problems([problem("a", 1, 1), problem("b", 1, 1)], color=False)

    assert drawn.count("hint: mend it") == 1


def test_wide_characters_keep_the_caret_in_place() -> None:
    """Two columns for a wide character, none for a combining one, tabs as they are."""
    drawn = render_problems([problem("\u6a21\u578be\u0301\tx", 6, 1)], color=False)

    assert drawn.splitlines()[4] == "   |      \t^"


def test_long_lines_are_cut_around_the_caret() -> None:
    """A line of a thousand columns shows the part that matters."""
    drawn = render_problems([problem("x" * 500 + "Y" + "x" * 500, 501, 1)], color=False)
    line, caret = drawn.splitlines()[3:5]

    assert len(line) < 100
    assert line[caret.index("^")] == "Y"


def test_colour_changes_no_word() -> None:
    """Without its escapes the coloured text is the plain one."""
    import re

    problems = [problem("  max_input_len: 4608", 18, 4)]
    coloured = render_problems(problems, color=True)

    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == render_problems(
        problems, color=False
    )


def test_problems_without_a_place_keep_their_path() -> None:
    """What has no text still says which value is meant."""
    bare = Problem(code="x.y", message="m", path="a.b", hint="h")

    assert render_problems([bare], color=False) == (
        "error[x.y]: m\n  --> a.b\nhint: h\n"
    )


def test_no_problems_draw_nothing() -> None:
    """Nothing to say is said with nothing."""
    assert render_problems([], color=True) == ""

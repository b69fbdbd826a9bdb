"""The page about backends says what the catalogue says."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lmi_build import registry
from lmi_build.catalog.support import PROOFS, load_support
from lmi_build.catalog.systems import load_systems
from lmi_build.testing import BACKEND_LAWS, ENGINE_LAWS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "backends.md"
HEAD = (
    "| system | device | loads | built by | proof | state | read in |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


def system_lines() -> list[str]:
    """One line for each system on each kind of device."""
    proofs = {row.name: row.proof for row in load_support()}
    lines = [*HEAD]
    for system in load_systems().systems.values():
        for port in system.ports:
            loads = "graphs of fixed bounds" if port.compiled else "weights"
            built = f"`{port.backend}`" if port.backend else "-"
            proof = proofs[port.backend] if port.backend else "-"
            life = system.life
            lines.append(
                f"| {system.title} | {port.device} | {loads} | {built} | {proof}"
                f" | {life.status}, {life.version} | {port.source.text},"
                f" {port.source.date} |"
            )
    return lines


def law_lines() -> list[str]:
    """One line for each law."""
    rows = [(law.name, law.says) for law in BACKEND_LAWS]
    rows += [(law.name, law.says) for law in ENGINE_LAWS]
    return [f"- `{name}`: {says}" for name, says in rows]


def support_lines() -> list[str]:
    """What each backend of ours makes, then one line for each of its targets."""
    rows = [row for row in load_support() if row.kind == "backend"]
    seen = [
        f"| `{row.name}` | {one.target} | {one.proof} | {one.what} | {one.date} |"
        for row in rows
        for one in row.seen
    ]
    return [
        *(f"- `{row.name}`: {row.artifact}." for row in rows),
        "",
        "| backend | target | proof | what was done | last on |",
        "| --- | --- | --- | --- | --- |",
        *seen,
    ]


BLOCKS: Mapping[str, Callable[[], list[str]]] = {
    "systems": system_lines,
    "backends": support_lines,
    "laws": law_lines,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_page_says_what_the_data_say(name: str, *, update_golden: bool) -> None:
    """A changed catalogue or a new law changes the page; what is between marks."""
    begin, end = f"<!-- {name}, from data -->\n\n", f"\n\n<!-- end of {name} -->"
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(begin)
    found, _, after = rest.partition(end)
    wanted = "\n".join(BLOCKS[name]())
    if update_golden:
        PAGE.write_text(f"{before}{begin}{wanted}{end}{after}", encoding="utf-8")
        return

    assert found == wanted


def test_every_backend_says_how_far_it_was_proven() -> None:
    """Those of this distribution; a plugin that is installed beside it is not ours."""
    rows = {row.name: row for row in load_support() if row.kind == "backend"}
    known = {name for name, row in rows.items() if row.artifact and row.seen}
    points = metadata.distribution("lmi-build").entry_points
    ours = {point.name for point in points if point.group == registry.BACKENDS}

    assert ours
    assert ours <= known
    for row in rows.values():
        # What other pages say of a backend as a whole holds for one of its targets.
        proofs = {one.proof for one in row.seen}
        assert proofs <= set(PROOFS)
        assert row.proof in proofs

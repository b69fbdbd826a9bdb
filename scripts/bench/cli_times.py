"""
What the command line costs: CPU and wall time of fresh processes, best of several.

    python scripts/bench/cli_times.py RECIPE --cache-dir DIR [--olive BIN] [--repeats 9]

Times `lmi-build --help`, `validate`, `plan` and a `build` of which every stage is in
the store of `--cache-dir` already (this is checked), each against its limit, and
`olive --help` when the peer's `bin` folder is given. CPU is user and system time of
the process and its children, from `wait4`. The best run is the one least disturbed by
others on the machine; the median stands beside it. Exits with 1 over a limit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """
    A command and what it may cost.

    Args:
        name: As the table calls it.
        command: Arguments, program first.
        limit: Most seconds of the best run; None for a peer.
        wall: Whether the limit is on wall time; else on CPU time.
    """

    name: str
    command: Sequence[str]
    limit: float | None
    wall: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """Seconds of the repeats of one command."""

    cpu: Sequence[float]
    wall: Sequence[float]


def time_once(command: Sequence[str], *, scratch: Path) -> tuple[float, float]:
    """
    CPU and wall seconds of one run.

    Raises:
        SystemExit: It failed.
    """
    with (scratch / "out").open("w+b") as out:
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            out.seek(0)
            text = out.read().decode(errors="replace")
            sys.exit(f"{command} ended with {process.returncode}:\n{text}")
    return usage.ru_utime + usage.ru_stime, wall


def time_case(case: Case, *, repeats: int, scratch: Path) -> Times:
    """Run a command `repeats` times after one that warms the file cache."""
    time_once(case.command, scratch=scratch)
    runs = [time_once(case.command, scratch=scratch) for _ in range(repeats)]
    return Times(cpu=[cpu for cpu, _ in runs], wall=[wall for _, wall in runs])


def check_cached(command: Sequence[str]) -> None:
    """
    Make sure that a build does nothing.

    Raises:
        SystemExit: A stage was built.
    """
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    stages = json.loads(done.stdout)["stages"]
    built = [stage["name"] for stage in stages if not stage["cached"]]
    if built or not stages:
        sys.exit(f"not a cached build, it ran {built}: run it once more")


def cases(
    recipe: Path, cache: Path, *, olive: Path | None, scratch: Path
) -> tuple[Case, ...]:
    """Every command of the table; the limits are those the project promises."""
    ours = str(Path(sys.executable).parent / "lmi-build")
    place = ["--cache-dir", str(cache)]
    build = [ours, "build", str(recipe), *place, "--no-publish"]
    build += ["--out", str(scratch / "artifacts"), "--output", "json"]
    found = [
        Case(name="`lmi-build --help`", command=[ours, "--help"], limit=0.060),
        Case(
            name="`lmi-build validate`",
            command=[ours, "validate", str(recipe)],
            limit=0.250,
        ),
        Case(
            name="`lmi-build plan`",
            command=[ours, "plan", str(recipe), *place],
            limit=0.500,
        ),
        Case(name="`lmi-build build`, cached", command=build, limit=1.0, wall=True),
    ]
    if olive is not None:
        help_command = [str(olive / "olive"), "--help"]
        found.append(Case(name="`olive --help`", command=help_command, limit=None))
    return tuple(found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--cache-dir", type=Path, required=True)
    parser.add_argument("--olive", type=Path, help="`bin` folder of the peer")
    parser.add_argument("--repeats", type=int, default=9)
    return parser.parse_args()


def main() -> None:
    """Print the table; exit with 1 when a command is over its limit."""
    args = _arguments()
    over = []
    print("| command | CPU best, ms | CPU median | wall best | limit |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        olive = args.olive
        for case in cases(args.recipe, args.cache_dir, olive=olive, scratch=scratch):
            if case.wall:
                check_cached(case.command)
            times = time_case(case, repeats=args.repeats, scratch=scratch)
            best = min(times.wall if case.wall else times.cpu)
            limit = "-"
            if case.limit is not None:
                kind = "wall" if case.wall else "CPU"
                limit = f"{case.limit * 1e3:.0f} {kind}"
                if best > case.limit:
                    over.append(case.name)
            cells = [min(times.cpu), statistics.median(times.cpu), min(times.wall)]
            shown = " | ".join(f"{value * 1e3:.0f}" for value in cells)
            print(f"| {case.name} | {shown} | {limit} |", flush=True)
    if over:
        sys.exit(f"over the limit: {', '.join(over)}")


if __name__ == "__main__":
    main()

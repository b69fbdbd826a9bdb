"""
What counting a request log costs, beside other ways to count it.

Each side runs in a process of its own on one core and gives the joint histogram of
input and output lengths; ours also chooses the bounds. All must agree on the number of
different pairs.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_FORMS = {
    "plain": '{{"id": "req-{n}", "input_tokens": {i}, "output_tokens": {o}}}\n',
    "timed": (
        '{{"timestamp": "2026-11-{day:02d}T10:{minute:02d}:{second:02d}.{n:06d}Z",'
        ' "id": "req-{n}", "model": "llama-3.1-8b", "input_tokens": {i},'
        ' "latency": 1.{n}, "output_tokens": {o}}}\n'
    ),
    "openai": (
        '{{"id": "cmpl-{n}", "object": "text_completion", "created": 17145{n:07d},'
        ' "model": "llama", "choices": [{{"index": 0, "text": "Some words, \\"{n}\\".",'
        ' "finish_reason": "length"}}], "usage": {{"prompt_tokens": {i},'
        ' "completion_tokens": {o}, "total_tokens": 1}}}}\n'
    ),
    "csv": "req-{n},{i},{o}\n",
    "wide": '{{"id": "req-{n}", "input_tokens": {i}, "output_tokens": {o}}}\n',
}
# Bounds and medians of lengths: a chat's, and, in `wide`, those of long documents.
_NARROW = ((8192, 6.0, 1.0), (2048, 4.6, 0.8))
_WIDE = ((131_072, 9.5, 1.2), (8192, 6.5, 1.0))
_HEADERS = {"csv": "id,input_tokens,output_tokens\n"}

# Each prints how many different pairs there are.
_PEERS = {
    "json + Counter": """
import json, sys
from collections import Counter
c = Counter()
for line in open(sys.argv[1], 'rb'):
    r = json.loads(line)
    c[r['input_tokens'], r['output_tokens']] += 1
print(len(c))""",
    "orjson + Counter": """
import orjson, sys
from collections import Counter
c = Counter()
for line in open(sys.argv[1], 'rb'):
    r = orjson.loads(line)
    c[r['input_tokens'], r['output_tokens']] += 1
print(len(c))""",
    "jq + sort": """
import subprocess, sys
command = "jq -r '[.input_tokens,.output_tokens]|@csv' $0 | LC_ALL=C sort -u | wc -l"
print(int(subprocess.check_output(['sh', '-c', command, sys.argv[1]])))""",
    "duckdb": """
import duckdb, sys
q = ("select count(*) from (select input_tokens, output_tokens, count(*) from"
     " read_json(?, format='newline_delimited') group by all)")
print(duckdb.connect(config={'threads': 1}).execute(q, [sys.argv[1]]).fetchone()[0])""",
    "polars": """
import os, sys
os.environ['POLARS_MAX_THREADS'] = '1'
import polars as pl
g = pl.scan_ndjson(sys.argv[1]).group_by('input_tokens', 'output_tokens').len()
print(g.collect(engine='streaming').height)""",
    "pyarrow": """
import pyarrow as pa, pyarrow.json as pj, sys
pa.set_cpu_count(1)
t = pj.read_json(sys.argv[1]).group_by(['input_tokens', 'output_tokens'])
print(t.aggregate([([], 'count_all')]).num_rows)""",
    "pandas, chunks": """
import pandas as pd, sys
g = None
for part in pd.read_json(sys.argv[1], lines=True, chunksize=1 << 18):
    s = part.groupby(['input_tokens', 'output_tokens']).size()
    g = s if g is None else g.add(s, fill_value=0)
print(len(g))""",
}
_OURS = """
import os, sys
from fractions import Fraction
from pathlib import Path
from lmi_build.traffic.propose import propose
from lmi_build.traffic.read import ReadOptions
from lmi_build.values.settings import Settings
timed = sys.argv[2:] == ['timed']
found = propose(sys.argv[1], settings=Settings(cache_dir=Path('.')),
                options=ReadOptions(timed=timed),
                request_seconds=9 if timed else None)
print(sum(1 for _ in found.tally.joint.cells()))"""


def main() -> None:
    """Make the logs, run each side, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--work", type=Path, default=Path(".cache/bench/bounds"))
    parser.add_argument("--peers", help="interpreter that has the other libraries")
    parser.add_argument("--only", action="append", help="a form or a peer")
    parser.add_argument("--stream", choices=_FORMS, help="write a log to stdout only")
    arguments = parser.parse_args()
    if arguments.stream:
        sys.stdout.writelines(lines(arguments.stream, arguments.rows))
        return
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    wanted = arguments.only
    print("| side | CPU s | wall s | peak MB | rows/s of CPU |\n|---|---|---|---|---|")
    pairs: set[int | None] = set()
    for form in [*_FORMS, "gzip"]:
        if wanted and form not in wanted:
            continue
        log = make_log(work, form, arguments.rows)
        more = ["timed"] if form == "timed" else []
        side = [sys.executable, "-c", _OURS, str(log), *more]
        found = report(f"ours, {form}", side, arguments.rows)
        pairs |= set() if form == "wide" else {found}
    for name, code in _PEERS.items():
        if not arguments.peers or (wanted and name not in wanted):
            continue
        log = make_log(work, "plain", arguments.rows)
        side = [arguments.peers, "-c", code, str(log)]
        pairs.add(report(name, side, arguments.rows))
    assert len(pairs - {None}) <= 1, pairs


def make_log(work: Path, form: str, rows: int) -> Path:
    """A log of lognormal lengths, the same ones in every form."""
    path = work / f"{form}-{rows}"
    if path.exists():
        return path
    partial = path.with_suffix(".part")
    if form == "gzip":
        plain = make_log(work, "plain", rows)
        with plain.open("rb") as source, gzip.open(partial, "wb", 6) as packed:
            while block := source.read(1 << 20):
                packed.write(block)
    else:
        with partial.open("w") as file:
            file.writelines(lines(form, rows))
    partial.rename(path)
    return path


def lines(form: str, rows: int) -> Iterator[str]:
    """The lines of a log, its header first where the form has one."""
    draw = random.Random(5).lognormvariate  # noqa: S311 - no secret
    write = _FORMS[form].format
    inputs, outputs = _WIDE if form == "wide" else _NARROW
    yield _HEADERS.get(form, "")
    for n in range(rows):
        i = min(inputs[0], int(draw(*inputs[1:])) + 1)
        o = min(outputs[0], int(draw(*outputs[1:])) + 1)
        day, minute, second = n // 360_000 % 28 + 1, n // 6000 % 60, n // 100 % 60
        yield write(n=n, i=i, o=o, day=day, minute=minute, second=second)


def report(name: str, command: list[str], rows: int) -> int | None:
    """Run a side on one core; prints its row and returns how many pairs it found."""
    # Children inherit it.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    begin = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert child.stdout is not None
    answer = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - begin
    cpu = usage.ru_utime + usage.ru_stime
    peak = usage.ru_maxrss / 1000
    failed = "" if child.returncode == 0 else " (failed)"
    print(
        f"| {name}{failed} | {cpu:.1f} | {wall:.1f} | {peak:.0f} | {rows / cpu:,.0f} |",
        flush=True,
    )
    return int(answer) if child.returncode == 0 else None


if __name__ == "__main__":
    main()

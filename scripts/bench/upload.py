"""
Our publisher against s5cmd: one artifact, one server, one run.

Ours hashes every byte with SHA-256, lets the server verify a checksum, verifies what
arrived and commits a manifest; s5cmd copies. Both are whole processes, start included,
taken in turns; the fastest of the rounds counts. Prints a Markdown table.

Needs the package `s5cmd` (the one with the binary) in some environment:
    upload.py --s5cmd PATH [--gib 2] [--rounds 3] [--servers sink moto]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE = Path(__file__).parent
_SERVERS = {
    "sink": [sys.executable, str(_HERE / "null_sink.py")],
    "moto": [sys.executable, str(_HERE.parent / "s3_server.py"), "--bucket", "bench"],
}
_MIB = 1 << 20
_GOAL = 1.3

# What `lmi-build publish` does, without the command line around it.
_OURS = """
import sys
from pathlib import Path
from lmi_build.digest import digest_file
from lmi_build.events import ignore
from lmi_build.publishers.destination import publish
from lmi_build.values.publish import Transfer
from lmi_build.values.recipe import PublishSpec
from lmi_build.values.settings import settings_from_environ
import os
tree, to, url = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
receipt = publish(
    tree,
    manifest_digest=digest_file(tree / "manifest.json"),
    name="bench",
    destination=PublishSpec(to=to, endpoint_url=url),
    settings=settings_from_environ(os.environ),
    extra={},
    emit=ignore,
    transfer=Transfer(),
)
assert receipt.skipped_bytes == 0, receipt
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Wall and CPU seconds and peak resident MiB of one process."""

    wall: float
    cpu: float
    rss_mib: float


def main() -> int:
    """Measure, print, and say whether the goal is met."""
    parser = argparse.ArgumentParser(description="Our publisher against s5cmd.")
    parser.add_argument("--s5cmd", type=Path, required=True)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--servers", nargs="+", choices=_SERVERS, default=["sink", "moto"]
    )
    arguments = parser.parse_args()
    shm = Path("/dev/shm")  # noqa: S108 -- a RAM disk, so that the disk is no bound
    folder = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None))
    try:
        num_bytes = make_tree(folder / "tree", round(arguments.gib * 1024) * _MIB)
        print(
            f"{num_bytes} bytes, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        print("| server | client | wall s | MB/s | CPU s | peak RSS MiB | wall ratio |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        ratios = [
            compare(
                server, folder / "tree", num_bytes, arguments.s5cmd, arguments.rounds
            )
            for server in arguments.servers
        ]
    finally:
        shutil.rmtree(folder)
    return 0 if max(ratios) <= _GOAL else 1


def make_tree(tree: Path, num_bytes: int) -> int:
    """A packed artifact: one large incompressible file and a few small ones."""
    tree.mkdir(parents=True)
    sizes = {"model/weights.bin": num_bytes - 3 * _MIB, "model/config.json": 2_000}
    sizes |= {"model/tokenizer.json": 2 * _MIB, "serving.properties": 300}
    rows = []
    for path, size in sizes.items():
        (tree / path).parent.mkdir(exist_ok=True)
        sha = hashlib.sha256()
        with (tree / path).open("wb") as stream:
            for start in range(0, size, 16 * _MIB):
                block = os.urandom(min(16 * _MIB, size - start))
                sha.update(block)
                stream.write(block)
        rows.append({"path": path, "size": size, "sha256": sha.hexdigest()})
    (tree / "manifest.json").write_text(json.dumps({"files": rows}))
    return sum(sizes.values())


def compare(server: str, tree: Path, num_bytes: int, s5cmd: Path, rounds: int) -> float:
    """Measure both in turns; prints two rows, returns ours / theirs."""
    best: dict[str, Cost] = {}
    for _ in range(rounds):
        for client in ("s5cmd", "lmi-build"):
            with serving(server) as url:
                command = (
                    [
                        str(s5cmd),
                        "--endpoint-url",
                        url,
                        "--log",
                        "error",
                        "cp",
                        f"{tree}/*",
                        "s3://bench/s5cmd/",
                    ]
                    if client == "s5cmd"
                    else [
                        sys.executable,
                        "-c",
                        _OURS,
                        str(tree),
                        "s3://bench/ours",
                        url,
                    ]
                )
                cost = measure(command)
            if client not in best or cost.wall < best[client].wall:
                best[client] = cost
    ratio = best["lmi-build"].wall / best["s5cmd"].wall
    for client, cost in best.items():
        shown = f"{ratio:.2f}" if client == "lmi-build" else "1"
        rate = num_bytes / cost.wall / 1e6
        print(
            f"| {server} | {client} | {cost.wall:.2f} | {rate:.0f}"
            f" | {cost.cpu:.1f} | {cost.rss_mib:.0f} | {shown} |",
            flush=True,
        )
    return ratio


@contextlib.contextmanager
def serving(server: str) -> Iterator[str]:
    """A fresh server, so that nothing is there yet; ends with its standard input."""
    process = subprocess.Popen(
        _SERVERS[server],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def measure(command: list[str]) -> Cost:
    """
    Run a process to its end.

    Raises:
        CalledProcessError: It failed; a failed upload is no measurement.
    """
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": tempfile.gettempdir(),
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_REGION": "us-east-1",
    }
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command[0])
    return Cost(
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        rss_mib=usage.ru_maxrss / 1024,
    )


if __name__ == "__main__":
    sys.exit(main())

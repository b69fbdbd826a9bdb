"""
Lose one of three hosts at a random moment, again and again.

Twelve artifacts of one tiny model are built by three simulated hosts over one S3
server; each time one host, chosen at random, is killed at a random moment. Afterwards
every artifact must be published whole, and no stage may have been begun twice but the
one that the lost host was at. A first run, with no host lost, says how long it takes
and that every stage runs once.

Usage: jobs_faults.py [--times N] [--seed N]
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from lmi_build import artifacts
from lmi_build.jobs.simulation.fault import LOST_HOST, Fault
from lmi_build.jobs.simulation.server import s3_server
from sagemaker_jobs import BUCKET, LOCAL, Bench, make_matrix

if TYPE_CHECKING:
    from lmi_build.jobs.simulation.job import JobEnd
    from lmi_build.values.stage import Plan

NUM_HOSTS = 3
LEASE_SECONDS = 6.0


def build(
    bench: Bench, plan: Plan, name: str, fault: Fault | None, seed: int
) -> JobEnd:
    """One job of three hosts, into a store and a destination of its own."""
    publish = {
        item.name: {"to": f"s3://{BUCKET}/out/{name}", "endpoint_url": bench.url}
        for item in plan.artifacts
    }
    request = bench.request(
        plan,
        name=name,
        hosts=NUM_HOSTS,
        publish=publish,
        lease_seconds=LEASE_SECONDS,
    )
    return bench.run(request, fault=fault, seed=seed)


def check(bench: Bench, plan: Plan, end: JobEnd) -> list[str]:
    """
    Hold a run against the two laws.

    Returns:
        Stages that were begun twice.
    """
    begun = Counter(stage for host in end.hosts for stage in host.started)
    wanted = {stage.name for stage in plan.stages if stage.kind not in LOCAL}
    assert set(begun) == wanted, wanted - set(begun)
    finished = Counter(stage for host in end.hosts for stage in host.built)
    assert all(count == 1 for count in finished.values()), finished
    twice = [stage for stage, count in begun.items() if count > 1]
    lost = [host for host in end.hosts if host.status == "Lost"]
    at_work = {s for host in lost for s in host.started if s not in host.built}
    assert set(twice) <= at_work, (twice, at_work)
    assert all(begun[stage] == len(lost) + 1 for stage in twice)
    survivors = [host for host in end.hosts if host.status != "Lost"]
    assert all(host.exit_code == 0 for host in survivors), survivors
    for item in plan.artifacts:
        spec = artifacts.access(
            f"s3://{BUCKET}/out/{end.name}/{item.name}", endpoint_url=bench.url
        )
        checked = artifacts.verify_artifact(spec, bench.settings)
        assert not checked.problems, checked.problems
    return twice


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="hosts to lose")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)  # noqa: S311 - moments
    root = Path(tempfile.mkdtemp(prefix="jobs-faults-"))
    try:
        with s3_server() as url:
            bench = Bench(url=url, root=root)
            bench.client.create_bucket(Bucket=BUCKET)
            recipe = make_matrix(root)
            span, _ = run(bench, recipe, "whole", None, 0)
            number = lost = 0
            while lost < arguments.times:
                number += 1
                fault = Fault(kind=LOST_HOST, seconds=draw.uniform(0, span))
                seed = draw.randrange(1 << 30)
                seconds, hit = run(bench, recipe, f"lost-{number}", fault, seed)
                lost += hit
                # It was done before the moment came: the machine is quieter now.
                span = span if hit else min(span, seconds)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0


def run(
    bench: Bench, recipe: Path, name: str, fault: Fault | None, seed: int
) -> tuple[float, bool]:
    """One run from an empty store; its seconds, and whether a host was lost."""
    bench.empty("store/")
    shutil.rmtree(bench.settings.cache_dir, ignore_errors=True)
    plan = bench.without_verify(bench.plan(recipe))
    began = time.monotonic()
    end = build(bench, plan, name, fault, seed)
    seconds = time.monotonic() - began
    twice = check(bench, plan, end)
    lost = [host.host for host in end.hosts if host.status == "Lost"]
    print(
        f"{name:<9} {seconds:6.1f} s  lost {', '.join(lost) or 'nobody':<7}"
        f" {f'at {fault.seconds:5.1f} s' if fault else '':<11}"
        f" stages begun {sum(len(host.started) for host in end.hosts)},"
        f" twice: {', '.join(twice) or 'none'}; all {len(plan.artifacts)} whole",
        flush=True,
    )
    return seconds, bool(lost)


if __name__ == "__main__":
    sys.exit(main())

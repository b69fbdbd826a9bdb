"""
Stand-in of libneuronxla: `neuron_xla_compile` with the real signature and cache.

A graph's NEFF is its hash over and over; the faults are those that builds really have.
"""

import hashlib
import os
import signal
import time

from neuronxcc import __version__ as compiler_version

__version__ = "2.1.714.0"


def neuron_xla_compile(
    module_bytes,
    compiler_flags,
    input_format="hlo",
    platform_target=None,
    cache_key=None,
    retry_failed_compilation=False,
    lazy=True,
    use_cache=True,
    cache_dir=None,
):
    root = cache_dir or os.environ["NEURON_COMPILE_CACHE_URL"]
    key = cache_key or hashlib.sha256(module_bytes).hexdigest()[:20]
    flags = hashlib.md5(compiler_flags.encode()).hexdigest()[:8]
    folder = os.path.join(
        root, f"neuronxcc-{compiler_version}", f"MODULE_{key}+{flags}"
    )
    neff, done = os.path.join(folder, "model.neff"), os.path.join(folder, "model.done")
    fault = os.environ.get("FAULT", "")
    if not os.path.exists(done):
        os.makedirs(folder, exist_ok=True)
        # The graph of the longest prompt is the last to be ready.
        late = b'["context"' in module_bytes
        if fault == "slow":
            print("neuronx-cc compiles", flush=True)
            time.sleep(20)
        with open(neff, "wb") as file:
            file.write(b"NEFF")
            file.flush()
            if fault == "killed" and late:
                _wait_for_another(root)
                _kill_all()
            if fault == "raise" and late:
                raise RuntimeError("[NCC_EVRF007] 10900000 instructions are too many")
            file.write(hashlib.sha512(module_bytes).digest() * 16)
        open(done, "w").close()
    with open(neff, "rb") as file:
        return file.read()


def _kill_all():
    """As the kernel's killer does to a group: the driver and all it started."""
    parent = os.getppid()
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        others = [int(pid) for pid in file.read().split() if int(pid) != os.getpid()]
    for pid in (parent, *others, os.getpid()):
        os.kill(pid, signal.SIGKILL)


def _wait_for_another(root):
    """A build is killed when something is ready already."""
    for _ in range(500):
        for folder, _, names in os.walk(root):
            if "model.done" in names:
                return
        time.sleep(0.01)

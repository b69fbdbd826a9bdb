"""What the probes make of the output of real programs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lmi_build.backends.host import free_host_bytes
from lmi_build.backends.trtllm.preflight import (
    Needs,
    check_gpus,
    preflight,
    read_gpus,
    visible_gpus,
)
from lmi_build.backends.trtllm.toolchain import check_toolchain, same_as_far
from lmi_build.errors import DoesNotFit, LmiBuildError, ToolMissing
from lmi_build.spi import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

MIB = 1024**2
FOUR = """\
0, NVIDIA A10G, 8.6, 23028, 22515, 550.163.01
1, NVIDIA A10G, 8.6, 23028, 22515, 550.163.01
2, NVIDIA A10G, 8.6, 23028, 1200, 550.163.01
3, NVIDIA A10G, 8.6, 23028, 22515, 550.163.01
"""
MEMINFO = """\
MemTotal:       24689764 kB
MemFree:         1021436 kB
MemAvailable:   18034764 kB
"""
NEEDS = Needs(
    trtllm="0.12.0",
    compute_capability="8.6",
    target="ml.g5.12xlarge",
    num_gpus=1,
    gpu_bytes=20_000 * MIB,
    host_bytes=0,
    disk_bytes=0,
)
GOOD = {
    "trtllm_build": "/usr/local/bin/trtllm-build",
    "trtllm": "0.12.0",
    "symbols": True,
    "tensorrt": "10.3.0",
    "distribution": "0.12.0",
}


def says(status: int, output: str) -> Callable[[Sequence[str]], Answer]:
    """A program that prints this, whatever it is asked."""
    return lambda command: Answer(status=status, output=output) if command else None  # type: ignore[return-value]


def probed(**changes: object) -> Answer:
    """What the probe prints, among what libraries print."""
    found = json.dumps({**GOOD, **changes})
    output = f"[TensorRT-LLM] TensorRT-LLM version: 0.12.0\nLMI-BUILD {found}\nbye\n"
    return Answer(status=0, output=output)


def test_gpus_are_read() -> None:
    """Names, capability and memory in bytes."""
    gpus = read_gpus(says(0, FOUR))

    assert [gpu.index for gpu in gpus] == [0, 1, 2, 3]
    assert gpus[0].name == "NVIDIA A10G"
    assert gpus[0].total_bytes == 23028 * MIB
    assert gpus[2].free_bytes == 1200 * MIB


@pytest.mark.parametrize(
    ("status", "output"),
    [
        (127, "nvidia-smi: No such file or directory"),
        (9, "NVIDIA-SMI has failed because it couldn't communicate with the driver."),
        (2, 'Field "compute_cap" is not a valid field to query.'),
        (0, "No devices were found"),
        (0, ""),
        (0, "0, NVIDIA A10G, 8.6, [N/A], [N/A], 550.163.01"),
    ],
)
def test_no_gpu(status: int, output: str) -> None:
    """Whatever the program says instead of a table is in the message."""
    with pytest.raises(ToolMissing) as caught:
        read_gpus(says(status, output))

    assert caught.value.code == "trtllm.no-gpu"
    assert (output.splitlines() or ["exit status"])[0] in caught.value.message


def test_enough_gpus_are_found_among_busy_ones() -> None:
    """Three are free; a fourth would have too little."""
    gpus = read_gpus(says(0, FOUR))
    three = replace(NEEDS, num_gpus=3)
    four = replace(NEEDS, num_gpus=4)

    assert [gpu.index for gpu in check_gpus(gpus, three)] == [0, 1, 3]
    with pytest.raises(DoesNotFit, match=r"GPU 2 .* has 1.2 GiB free of 22.5 GiB"):
        check_gpus(gpus, four)


@pytest.mark.parametrize(
    ("visible", "indices"),
    [("", [0, 1, 2, 3]), ("1,3", [1, 3]), ("GPU-8f6d", [0, 1, 2, 3]), (" 2 ", [2])],
)
def test_hidden_gpus(visible: str, indices: list[int]) -> None:
    """`nvidia-smi` shows GPUs that the build would not see."""
    gpus = visible_gpus(read_gpus(says(0, FOUR)), visible)

    assert [gpu.index for gpu in gpus] == indices


def test_too_few_gpus() -> None:
    """Five ranks at once need five."""
    needs = replace(NEEDS, num_gpus=5)

    with pytest.raises(DoesNotFit) as caught:
        check_gpus(read_gpus(says(0, FOUR)), needs)

    assert caught.value.code == "trtllm.few-gpus"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(status=125, output="docker: no such image"), "trtllm.absent"),
        (Answer(status=0, output="LMI-BUILD {broken"), "trtllm.absent"),
        (Answer(status=0, output="LMI-BUILD []"), "trtllm.absent"),
        (
            probed(
                error="ModuleNotFoundError: No module named 'tensorrt_llm'",
                distribution="",
                symbols=False,
            ),
            "trtllm.absent",
        ),
        (
            probed(
                error="ModuleNotFoundError: No module named 'tensorrt_llm'",
                distribution="1.0.0",
                symbols=False,
            ),
            "trtllm.stub",
        ),
        (probed(symbols=False, trtllm="", trtllm_build=""), "trtllm.stub"),
        (
            probed(error="ImportError: libcuda.so.1: cannot open", symbols=False),
            "trtllm.broken",
        ),
        (
            probed(error="ModuleNotFoundError: No module named 'mpi4py'"),
            "trtllm.broken",
        ),
        (probed(trtllm="0.12.0.dev2024080600"), "trtllm.wrong-version"),
        (probed(trtllm_build=""), "trtllm.no-builder"),
    ],
)
def test_toolchains_that_will_not_do(answer: Answer, code: str) -> None:
    """Each has a code of its own, and a message that names the place."""
    with pytest.raises(LmiBuildError) as caught:
        check_toolchain(answer, NEEDS.trtllm, where="this environment")

    assert caught.value.code == code
    assert "this environment" in caught.value.message


def test_an_image_that_is_not_here() -> None:
    """Docker's own status leads to a pull."""
    answer = Answer(status=125, output="docker: pull access denied")

    with pytest.raises(ToolMissing) as caught:
        check_toolchain(answer, NEEDS.trtllm, where="the image `repo:tag`")

    assert "docker pull" in caught.value.hints[0]


def test_a_good_toolchain_is_read() -> None:
    """Its versions go into the record of the engine."""
    found = check_toolchain(probed(), NEEDS.trtllm, where="here")

    assert (found.trtllm, found.tensorrt) == ("0.12.0", "10.3.0")


@pytest.mark.parametrize(
    ("known", "found", "same"),
    [
        ("10.3.0", "10.3.0", True),
        ("10.10", "10.10.0.31", True),
        ("10.3.0", "10.1.0", False),
        ("", "10.1.0", True),
    ],
)
def test_versions_are_compared_as_far_as_known(
    known: str, found: str, *, same: bool
) -> None:
    """The catalogue does not know every last number."""
    assert same_as_far(known, found) == same


def test_memory_of_the_host() -> None:
    """What a new process can have, not what is free."""
    assert free_host_bytes(MEMINFO) == 18034764 * 1024
    with pytest.raises(ToolMissing):
        free_host_bytes("MemTotal: 1 kB\n")


def test_the_whole_preflight(tmp_path: Path) -> None:
    """Programs are asked in order: GPUs first, then the toolchain's Python."""
    asked: list[tuple[str, ...]] = []

    def ask(command: Sequence[str]) -> Answer:
        asked.append(tuple(command))
        return Answer(status=0, output=FOUR) if len(asked) == 1 else probed()

    machine = preflight(
        NEEDS, ask=ask, prefix=["python3"], out=tmp_path, where="this environment"
    )

    assert len(machine.gpus) == 3
    assert [command[0] for command in asked] == ["nvidia-smi", "python3"]
    assert asked[1][1] == "-c"

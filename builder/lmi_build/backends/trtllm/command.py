"""
Commands of an engine build as lists of words, never as text for a shell.

Everything runs in one folder with fixed names in it, so that a command is the same on
every machine and the engine's `config.json`, which quotes its options, holds no path of
the machine that built it:

    checkpoint/  engine/  cache/  and for NVIDIA's converter  source/  examples/

A container sees the same folder as `containers.WORK`.

Engines come from `trtllm-build` in every release, also where the LMI image itself calls
`tensorrt_llm.llmapi.LLM(...).save()` (0.33): that script quantizes with a calibration
of its own, takes options as words of a properties file, drops those it does not know
and needs as many GPUs as ranks. `LLM(FOLDER)` loads what either of them wrote, as it
looks only for `pretrained_config` and `build_config` in the folder's config.json.

Sources: djl-serving 0.33.0-dlc serving/docker/partition/trt_llm_partition.py;
TensorRT-LLM 0.16 llmapi/llm_utils.py and 2025 llmapi/llm_args.py `get_model_format`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.conversion import CHECKPOINT, EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.trtllm.arguments import Build
    from lmi_build.backends.trtllm.conversion import Conversion
    from lmi_build.catalog.trtllm_flags import Flag

ENGINE, CACHE = "engine", "cache"
TIMING_CACHE = f"{CACHE}/timing.cache"


def trtllm_build(build: Build, flags: Mapping[str, Flag], *, workers: int) -> list[str]:
    """
    The words of one `trtllm-build`.

    Args:
        build: What it builds.
        flags: The release's options.
        workers: Ranks built at once, a GPU each.
    """
    words = ["trtllm-build"]
    words += ["--checkpoint_dir", _inside(CHECKPOINT, build.checkpoint)]
    words += ["--output_dir", _inside(ENGINE, build.engine)]
    words += build.arguments
    for name in ("input_timing_cache", "output_timing_cache", "timing_cache"):
        if name in flags:
            words += [f"--{name}", TIMING_CACHE]
    return [*words, "--workers", str(workers)]


def convert_checkpoint(
    conversion: Conversion, *, workers: int, python: str = "python3"
) -> list[str]:
    """
    The words of NVIDIA's converter.

    Args:
        conversion: What it is told.
        workers: Ranks converted at once; each holds its weights in memory.
        python: Interpreter of the toolchain.
    """
    place = conversion.script.removeprefix("examples/")
    words = [python, f"{EXAMPLES}/{place}", *conversion.arguments]
    return [*words, "--workers", str(workers)] if conversion.parallel else words


def _inside(folder: str, part: str) -> str:
    return f"{folder}/{part}" if part else folder

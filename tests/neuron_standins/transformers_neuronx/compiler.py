"""From a graph to a NEFF, through the same functions as the real library."""

import os

from libneuronxla import neuron_xla_compile


def get_compiler_flags():
    """The user's flags, and two defaults unless their key is in the user's text."""
    user = os.environ.get("NEURON_CC_FLAGS", "").strip()
    flags = [user] if user else []
    for key, value in (("--model-type", "transformer"), ("--auto-cast", "none")):
        if key not in user:
            flags.append(f"{key}={value}")
    return " ".join(flags)


def compile_hlo_module(hlo_module, tag=None, num_exec_repetition=1):
    flags = f"{get_compiler_flags()} --execute-repetition={num_exec_repetition}"
    return neuron_xla_compile(
        hlo_module,
        flags,
        input_format="hlo",
        platform_target="trn1",
        retry_failed_compilation=False,
        lazy=True,
        use_cache=True,
        cache_dir=None,
    )


def compile_kernel(hlo_module):
    """What a worker process of the real library is given; looked up when it runs."""
    return compile_hlo_module(hlo_module)

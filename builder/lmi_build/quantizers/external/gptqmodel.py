"""GPT-QModel as a provider: what it can do, and a recipe in its words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lmi_build.quantizers.external.library import ENTRY, Library, left_in_float
from lmi_build.spi import ProviderInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.digest import JSONValue
    from lmi_build.errors import Problem
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import QuantSpec

NAME = "gptqmodel"
# What the library adds to the dampening each time a block is not positive definite.
_DAMP_STEP = 0.01


def native(spec: QuantSpec, model: ModelFacts) -> dict[str, JSONValue]:
    """
    The quantization's configuration and the arguments of the run.

    `desc_act` with static groups leaves the group index plain. `act_group_aware`, the
    library's own default, orders whole groups instead of columns; it is not what the
    recipe's word means, and stays off. A layer with too few tokens is an error: the
    library's fallback would round it without saying so.
    """
    left = [name for name in left_in_float(spec, model) if name != "lm_head"]
    return {
        "config": {
            "bits": spec.bits,
            "group_size": spec.group_size,
            "sym": spec.sym,
            "desc_act": spec.desc_act,
            "static_groups": spec.desc_act,
            "act_group_aware": False,
            "damp_percent": spec.damp_percent,
            "damp_auto_increment": _DAMP_STEP,
            "true_sequential": spec.true_sequential,
            "lm_head": False,
            "format": "gptq" if spec.format == "auto" else spec.format,
            "dynamic": {f"-:^{re.escape(name)}$": {} for name in left} or None,
            "fallback": None,
            "mse": 0,
        },
        "quantize": {
            "batch_size": 1,
            "calibration_sort": None,
            "calibration_data_min_length": 1,
        },
    }


def refuse(spec: QuantSpec, model: ModelFacts) -> Iterator[Problem]:
    """Nothing beyond what the checks of all providers find."""
    del spec, model
    yield from ()


PROVIDER = Library(
    info=ProviderInfo(
        name=NAME,
        summary="GPT-QModel: GPTQ",
        distributions=("gptqmodel", "torch"),
        modules=("gptqmodel",),
        salt=1,
        entry=ENTRY,
        methods=("gptq",),
        threaded_methods=("gptq",),
        toolchain=NAME,
    ),
    driver="lmi_build.quantizers.external.drive_gptqmodel",
    formats=("gptq", "gptq_v2"),
    native=native,
    refuse=refuse,
)

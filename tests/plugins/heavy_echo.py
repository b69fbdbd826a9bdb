"""A variant of the plugin that brings its runtime into the planner."""

from __future__ import annotations

import numpy as np
from lmi_build_echo.backend import EchoBackend


class Heavy(EchoBackend):
    """It could not be planned without NumPy."""

    float_type = np.float32

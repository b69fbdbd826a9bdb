"""`python3 -m neuron_drivers`; the shipped folder's own `__main__.py` is the same."""

from __future__ import annotations

import sys

from .common import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

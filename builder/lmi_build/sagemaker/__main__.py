"""`python -m lmi_build.sagemaker`: one container of a job."""

from __future__ import annotations

import os
import sys

from lmi_build.sagemaker.run import main

if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))

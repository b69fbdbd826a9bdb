"""Write `recipes/schema.json` from the grammar, or check that it is current."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lmi_build.recipe.schema import schema_text

SCHEMA = Path(__file__).parent.parent / "recipes" / "schema.json"


def main() -> int:
    """Write the file; with `--check` only compare, and say so by the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    check = parser.parse_args().check
    text = schema_text()
    if SCHEMA.exists() and SCHEMA.read_text(encoding="utf-8") == text:
        return 0
    if check:
        print(f"{SCHEMA.name} is out of date; run scripts/gen_schema.py")
        return 1
    SCHEMA.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

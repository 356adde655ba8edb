"""One JSON object on standard output, and nothing else there."""

from __future__ import annotations

import json
import sys
from typing import Any


def print_json(value: dict[str, Any]) -> None:
    """Print an object for scripts; NaN and infinity, which JSON does not have, are errors."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")

"""One JSON object on standard output, and nothing else there."""

from __future__ import annotations

import json
import sys
from typing import Any


def print_json(value: dict[str, Any]) -> None:
    """For scripts; NaN and infinity, which are no JSON, are errors."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")

"""JSON that anybody may have written: whatever is wrong with it is a ValueError."""

from __future__ import annotations

import json
from typing import Any


def from_json(content: str | bytes, **options: Any) -> Any:
    """`json.loads`; text that is nested too deep for Python is refused as any other.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(content, **options)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error

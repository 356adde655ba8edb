"""What --help says of an option is what the option takes."""

from __future__ import annotations

import re

import pytest

from natprec.config import OPTIONS


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.choices])
def test_help_names_all_that_is_known(name: str) -> None:
    option = OPTIONS[name]
    missing = [each for each in option.choices if not re.search(rf"(?<![\w.-]){re.escape(each)}(?![\w-])", option.help)]
    assert not missing, option.help

"""What --help says of an option is what the option takes."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable

import pytest

from natprec.arithmetic import ARITHMETIC
from natprec.commands import options as options_module
from natprec.distortions import DISTORTIONS
from natprec.formats.engines import PROFILES
from natprec.measurement.measure import ESTIMATORS, SITES
from natprec.roundings import ROUNDINGS
from natprec.run.request import WEIGHTS
from natprec.transforms import TRANSFORMS


@pytest.mark.parametrize(
    ("options", "known"),
    [
        (("Engine", "PlannedEngine"), PROFILES),
        (("DistortionOption",), DISTORTIONS),
        (("TransformsOption",), TRANSFORMS),
        (("EstimatorOption",), ESTIMATORS),
        (("SitesOption",), SITES),
        (("WeightsOption",), WEIGHTS),
        (("RoundingOption",), ROUNDINGS),
        (("ArithmeticOption",), ARITHMETIC),
    ],
)
def test_help_names_all_that_is_known(options: tuple[str, ...], known: Iterable[str]) -> None:
    for name in options:
        said = typing.get_args(getattr(options_module, name))[1].help
        missing = [each for each in known if not re.search(rf"(?<![\w.-]){re.escape(each)}(?![\w-])", said)]
        assert not missing, said

"""A table of measured costs as a TOML file: what was measured where, then a row for each product.

    source = "measured"            # or "roofline", for a table that was computed
    unit = "microseconds"          # or "joules"
    engine = "natprec"
    gpu = "NVIDIA H200"            # left out: the CPU
    cpu = "Intel Xeon"             # also threads, date, clock_mhz, versions and whatever else says how

    [[rows]]
    weight = "int4-g64"            # or "16 bits"
    inputs = "16 bits"             # or a8-token …
    rows = 4096                    # outputs
    columns = 4096                 # inputs
    tokens = 1
    microseconds = 12.5            # the median of one product; of `natprec energy --costs` joules
    spread = 0.02                  # relative: half of the distance between the quartiles

`natprec costs` writes such files, and so does `natprec energy --costs`. A cost of 0, below 0, or that is no number is
refused, and so is a row that stands twice.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from natprec.costs.interpolate import Points, interpolated
from natprec.costs.model import UNQUANTIZED, Estimate, Product, pair_name
from natprec.errors import InputError
from natprec.formats import Format, activation, parse_activation, parse_format
from natprec.utils.schema import Above0, Among, From0, Named, Place, Positive, read

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UNITS = ("microseconds", "joules")
SOURCES = ("measured", "roofline")
PLAIN = (UNQUANTIZED, "bfloat16", "float16", "float")
"""What weights and inputs of 16 bits are called; the last ones by `natprec energy --costs`."""


def parse_weight(name: str) -> Format | None:
    """A format of weights; None for 16 bits.

    Raises:
        InputError: it is unknown.
    """
    return None if name in PLAIN else parse_format(name)


def parse_inputs(name: str) -> Format | None:
    """A format of inputs; None for 16 bits.

    Raises:
        InputError: it is unknown.
    """
    if name in PLAIN:
        return None
    return activation(8) if name == "int8" else parse_activation(name)


@dataclass(frozen=True)
class Row:
    """A measured product; `joules` or `microseconds` of one, as the table's unit says."""

    weight: Annotated[Any, Named(parse_weight)]
    rows: Positive
    columns: Positive
    tokens: Positive
    inputs: Annotated[Any, Named(parse_inputs)] = None
    microseconds: Above0 | None = None
    joules: Above0 | None = None
    spread: From0 | None = None
    count: Positive | None = None
    kernel: str = ""
    joules_ci95: tuple[float, float] | None = None
    seconds: Above0 | None = None
    cv: From0 | None = None

    @property
    def product(self) -> Product:
        """What was measured."""
        return Product(self.weight, self.inputs, self.rows, self.columns, self.tokens)


@dataclass(frozen=True)
class Rest:
    """What a model took beside its products: attention, norms, sampling. A mean over so many whole plans."""

    model: str
    model_digest: str
    tokens: Positive
    microseconds: float
    spread: From0
    plans: Positive = 1


@dataclass(frozen=True)
class _File:
    """What the file says."""

    source: Annotated[str, Among(SOURCES)]
    unit: Annotated[str, Among(UNITS)]
    engine: str
    rows: list[Row]
    gpu: str | None = None
    rest: list[Rest] = field(default_factory=list)
    cpu: str | None = None
    threads: Positive | None = None
    model: str | None = None
    date: str | None = None
    clock: str | None = None
    clock_mhz: list[float] = field(default_factory=list)
    counter: str | None = None
    scope: str | None = None
    note: str | None = None
    versions: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CostTable:
    """See the module; attributes as `CostModel` has them.

    Attributes:
        gpu: the GPU's name; None: the CPU.
        cpu: the CPU's name, where the file has it.
        complete: whether it must have all formats of a measurement; natprec's own leave those out that they lack.
    """

    name: str
    source: str
    unit: str
    digest: str
    engine: str
    gpu: str | None
    cpu: str | None
    complete: bool = True
    _rest: tuple[Rest, ...] = field(repr=False, compare=False, default=())
    _points: Points = field(repr=False, compare=False, default_factory=dict)

    @classmethod
    def load(cls, file: Path, name: str | None = None) -> CostTable:
        """Read a table.

        Args:
            name: of a table that natprec ships.
        Raises:
            InputError: no such file, no TOML, or a field that cannot be; names it.
        """
        place = Place(f"table of costs {name or str(file)!r}", "measure it again with natprec costs, or correct it")
        try:
            data = file.read_bytes()
            content = tomllib.loads(data.decode("utf-8"))
        except OSError as error:
            raise InputError(
                f"table of costs {str(file)!r} cannot be read ({error.strerror}); make one with natprec costs"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise place.wrong(f"is not TOML ({error})") from error
        found: _File = read(_File, content, place)
        if not found.rows:
            raise place.within("rows").wrong("are none")
        points: Points = {}
        for number, row in enumerate(found.rows):
            value, at = getattr(row, found.unit), place.within("rows").at(number)
            if value is None:
                raise at.wrong(f"lacks {found.unit!r}, which is the table's unit")
            shapes = points.setdefault((row.weight, row.inputs), {}).setdefault((row.rows, row.columns), {})
            if row.tokens in shapes:
                raise at.wrong(f"says {row.product.formats} of {row.rows} × {row.columns} a second time")
            spread = row.cv if row.spread is None else row.spread
            shapes[row.tokens] = Estimate(value, spread)
        return cls(
            name or file.name, found.source, found.unit, hashlib.sha256(data).hexdigest()[:16], found.engine,
            found.gpu, found.cpu, name is None, tuple(found.rest), points,
        )  # fmt: skip

    @property
    def of(self) -> str:
        """The engine and the machine that it was measured on."""
        return f"engine {self.engine!r} on {self.gpu or self.cpu or 'a CPU'}"

    def has(self, weight: Format | None, inputs: Format | None) -> bool:
        """See `CostModel.has`."""
        return (weight, inputs) in self._points

    def product(self, product: Product) -> Estimate:
        """See `CostModel.product`."""
        try:
            return interpolated(self._points, product)
        except InputError as error:
            raise InputError(f"table of costs {self.name!r} ({self.of}): {error}") from None

    def rest(self, model_digest: str, tokens: int) -> Estimate | None:
        """See `CostModel.rest`."""
        for each in self._rest:
            if (each.model_digest, each.tokens) == (model_digest, tokens):
                return Estimate(each.microseconds, each.spread)
        return None

    def refuse_lacking(self, pairs: Iterable[tuple[Format | None, Format | None]]) -> None:
        """See `CostModel.refuse_lacking`."""
        lacking = sorted({pair_name(*pair) for pair in pairs if not self.has(*pair)})
        if lacking:
            known = ", ".join(sorted(pair_name(*pair) for pair in self._points))
            raise InputError(
                f"table of costs {self.name!r} lacks {', '.join(lacking)}, which the plan may use; it has {known}; "
                "measure those too with natprec costs --formats, or measure the model with fewer formats"
            )

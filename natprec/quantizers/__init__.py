"""Q_b: from a float tensor to codes on a grid, and back."""

from natprec.quantizers.floating import Extent
from natprec.quantizers.grid_search import choose_grid
from natprec.quantizers.integer import round_to_grid
from natprec.quantizers.nearest import quantize, rounding_errors, squared_errors
from natprec.quantizers.tensor import QuantizedTensor

__all__ = [
    "Extent",
    "QuantizedTensor",
    "choose_grid",
    "quantize",
    "round_to_grid",
    "rounding_errors",
    "squared_errors",
]

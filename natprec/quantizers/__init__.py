"""Q_b: from a float tensor to codes on an integer grid, and back."""

from natprec.quantizers.integer import (
    QuantizedTensor,
    choose_grid,
    quantize,
    round_to_grid,
    rounding_errors,
    squared_errors,
)

__all__ = ["QuantizedTensor", "choose_grid", "quantize", "round_to_grid", "rounding_errors", "squared_errors"]

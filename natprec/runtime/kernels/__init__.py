"""Checkpoints that run in their low-bit form: one specification, and the kernels that answer to it.

`reference` says in float64 what a quantized Linear computes, `epilogue` what is done to its accumulator before
it is stored; every kernel is tested against the two.
"""

from natprec.runtime.kernels.epilogue import Epilogue

__all__ = ["Epilogue"]

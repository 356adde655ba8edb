"""What engines do with a checkpoint: the kernel of each layer, and the arithmetic that it really runs."""

from natprec.engines.layers import Layer, Operand, Run

__all__ = ["Layer", "Operand", "Run"]

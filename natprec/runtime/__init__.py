"""Checkpoints that run: the folder as it is, its low-bit codes, and text out of them."""

from natprec.runtime.load import Runnable, load

__all__ = ["Runnable", "load"]

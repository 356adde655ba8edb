"""Checkpoints that others' software loads."""

from natprec.export.compressed_tensors import checkpoint_tensors, write_checkpoint

__all__ = ["checkpoint_tensors", "write_checkpoint"]

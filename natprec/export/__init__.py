"""Checkpoints that others' software loads."""

from natprec.export.compressed_tensors import checkpoint_tensors, write_checkpoint
from natprec.export.gguf import as_gguf, write_gguf

__all__ = ["as_gguf", "checkpoint_tensors", "write_checkpoint", "write_gguf"]

"""Checkpoints that others' software loads."""

from natprec.checkpoints.checkpoint import checkpoint_writer
from natprec.checkpoints.compressed_tensors import checkpoint_tensors
from natprec.checkpoints.gguf import as_gguf

__all__ = ["as_gguf", "checkpoint_tensors", "checkpoint_writer"]

"""Checkpoints that others' software loads."""

from natprec.export.checkpoint import checkpoint_writer
from natprec.export.compressed_tensors import checkpoint_tensors
from natprec.export.gguf import as_gguf

__all__ = ["as_gguf", "checkpoint_tensors", "checkpoint_writer"]

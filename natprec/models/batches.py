"""How sequences are run together: a few at a time, in their order."""

from __future__ import annotations

from natprec.models.segments import SegmentedModel

BATCH_TOKENS = 1024


def batches(sequences: int, length: int, *, routed: bool = False) -> list[range]:
    """Index ranges of about `BATCH_TOKENS` tokens each; one sequence each if the model has experts, as an expert's
    inputs do not say which sequence they are of.
    """
    size = 1 if routed else max(1, BATCH_TOKENS // length)
    return [range(start, min(start + size, sequences)) for start in range(0, sequences, size)]


def batch_rows(batch: range) -> slice:
    """The sequences of a batch, as an index."""
    return slice(batch.start, batch.stop)


def batch_count(segmented: SegmentedModel, sequences: int, length: int, segment: int | None = None) -> int:
    """How many times `sweep` calls `advance`; from the segment on that a resumed one begins with."""
    blocks = len(segmented.blocks)
    segment = blocks if segment is None else segment
    forward, backward = (1 + segment, 2 + segment) if blocks else (0, 1 + segment)
    return len(batches(sequences, length, routed=segmented.routed)) * (forward + backward)

"""Running a captured model on text and counting the 16-bit codes of some of its values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from natprec.errors import InputError, ModelError
from natprec.inspection.information import Codebook
from natprec.inspection.information.codebook import half_histogram
from natprec.inspection.ir.boundaries import value_name
from natprec.inspection.ir.graph import Capture
from natprec.utils.progress import Advance


@torch.no_grad()
def codebooks(
    capture: Capture,
    batches: Sequence[Mapping[str, Any]],
    nodes: Iterable[fx.Node],
    dtype: torch.dtype,
    advance: Advance = lambda label: None,
) -> dict[fx.Node, Codebook]:
    """The codes that occur at some nodes, over all batches.

    Args:
        batches: inputs of shapes as `capture` was given.
        dtype: a 16-bit float, in which the values are stored.
    Raises:
        InputError: no batches.
        ModelError: a value is NaN or Inf; names the site and the batch.
    """
    if not batches:
        raise InputError("no calibration sequences: entropies are of data; give text with --data, or raise --tokens")
    counts: dict[fx.Node, Tensor] = {}

    def count(number: int) -> Any:
        def see(node: fx.Node, value: Tensor) -> None:
            bad = value.numel() - int(torch.isfinite(value).sum())
            if bad:
                raise ModelError(
                    f"activation {value_name(node)!r} holds {bad} values of {value.numel()} that are NaN or Inf in "
                    f"batch {number}; leave that text out, or mend the model"
                )
            found = half_histogram(value, dtype)
            counts[node] = counts[node] + found if node in counts else found

        return see

    watched = set(nodes)
    for number, batch in enumerate(batches):
        capture.run(batch, watched, count(number))
        advance(f"batch {number}")
    return {node: Codebook.of_half(histogram.cpu(), dtype) for node, histogram in counts.items()}

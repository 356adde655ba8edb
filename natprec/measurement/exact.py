"""The exact estimator: replace one site, replay the rest of the network, take the distortion.

It is the definition of the forward distortion (T1) and the judge of the Fisher sweep. Block inputs
are kept, so that a site in block i costs a forward of the blocks from i on, per format.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from natprec.formats import Format
from natprec.measurement.forward import forward_blocks
from natprec.models.activation_sites import rounded
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import Site, site_layer, site_weight
from natprec.quantizers import quantize
from natprec.tasks import Samples
from natprec.utils.progress import Advance


@contextlib.contextmanager
def replaced(model: nn.Module, site: Site, value: Tensor) -> Iterator[None]:
    """The site's weight is `value` within the block; all uses of a tied weight see it."""
    layer = site_layer(model, site)
    original = layer.weight.data
    layer.put(value)
    try:
        yield
    finally:
        layer.weight.data = original


@contextlib.contextmanager
def quantized_site(model: nn.Module, site: Site, fmt: Format, scale_dtype: torch.dtype) -> Iterator[None]:
    """A site of any kind under a format, alone, within the block."""
    if site.kind != "weight":
        with rounded(model, site, fmt):
            yield
    else:
        with replaced(model, site, quantize(site_weight(model, site), fmt, scale_dtype).dequantize()):
            yield


@torch.no_grad()
def exact_curves(
    segmented: SegmentedModel,
    wanted: Sequence[tuple[Site, Sequence[Format]]],
    samples: Samples,
    scale_dtype: torch.dtype,
    advance: Advance = lambda step: None,
) -> Iterator[tuple[Site, np.ndarray]]:
    """Distortion of each site under each of its formats, alone.

    Args:
        advance: called once per site, format and batch.
    Yields:
        The site and its (samples, formats) distortion, averaged over the terms of each sample.
    """
    suffix, parts = len(segmented.blocks), samples.batches(segmented.together)
    with segmented.judging():
        inputs, contexts = forward_blocks(segmented, samples, suffix)
    last = inputs[-1] if inputs else None
    with segmented.hold(suffix), segmented.judging():
        references = [segmented.suffix(None if last is None else last[b], samples[b]) for b in parts]
    for site, formats in wanted:
        first = site.segment if segmented.blocks else suffix
        uses = {segmented.segment_of(use) for use in site.uses}
        values = np.zeros((len(samples), len(formats)))
        for column, fmt in enumerate(formats):
            with contextlib.ExitStack() as held:
                for segment in uses:
                    held.enter_context(segmented.hold(segment))
                held.enter_context(quantized_site(segmented.model, site, fmt, scale_dtype))
                start = inputs[first] if inputs and first >= 0 else None
                hidden = [None if start is None else start[b] for b in parts]
                for segment in range(first, suffix + 1):
                    with segmented.hold(segment), segmented.judging():
                        for number, batch in enumerate(parts):
                            output = segmented.run(
                                segment, hidden[number], samples[batch], contexts[number] if contexts else []
                            )
                            if segment < suffix:
                                hidden[number] = output
                                continue
                            distances = segmented.distortion.between(references[number], output, samples[batch])
                            values[batch, column] = distances.mean(1).cpu().numpy()
                            advance(f"{site.name} {fmt.name}")
        yield site, values

"""What transformers runs of a layer: compressed-tensors unpacks its weight at the first forward, on any device.

Source: runs of transformers 5.23.0 with compressed-tensors 0.20.0 (LOG.md has the messages). Inputs are rounded as the
checkpoint says, in the model's own dtype, so what is said is what runs; what it does not load is listed here.
"""

from __future__ import annotations

from natprec.engines.layers import UNQUANTIZED, Layer, Run


def run(layer: Layer) -> Run:
    """The arithmetic of one layer, or why it does not load."""
    weight = layer.weight
    if weight is None:
        return Run(UNQUANTIZED, "Unquantized")
    if layer.role == "embedding" and layer.container == "pack-quantized":
        return Run(None, None, "'Embedding' object has no attribute 'weight': it reads int8 codes alone")
    if layer.container == "pack-quantized" and weight.zeros:
        return Run(None, None, "packed zero points do not fit: size mismatch")
    if weight.type == "float" and weight.bits == 6:
        return Run(layer.says, "Decompressed", "6-bit floats were not run")
    return Run(layer.says, "Decompressed")

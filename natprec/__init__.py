"""Post-training quantization driven by measured natural precision.

    import natprec
    m = natprec.measure(model, tokenizer, "text.txt")   # Measurement: what each width costs, per site
    plan = m.solve(eps=0.01, engine="vllm")             # Plan: each site's format
    q = plan.apply(model, tokenizer, "text.txt")        # Quantized, in memory
    natprec.save(q, "out")                              # a checkpoint that engines load
    natprec.verify("out", model, "held-out.txt")        # Verification: KL on text never seen
    runnable = natprec.load("out")                      # the checkpoint, run on its codes: runnable(input_ids=ids)

`natprec.pipeline` is the same as one job, `natprec quantize` its command.
"""

from natprec.api import Quantized, apply, measure, save, verify
from natprec.distortions import Distortion, FeatureDistance
from natprec.errors import BudgetError, InputError, ModelError, NatprecError, OutputError
from natprec.evaluation.verify import Verification
from natprec.formats import Format
from natprec.measurement import Curve, Measurement
from natprec.pipeline import quantize
from natprec.run.request import Request
from natprec.runtime import Runnable, load
from natprec.solver import Choice, Plan, solve

__all__ = [
    "BudgetError",
    "Choice",
    "Curve",
    "Distortion",
    "FeatureDistance",
    "Format",
    "InputError",
    "Measurement",
    "ModelError",
    "NatprecError",
    "OutputError",
    "Plan",
    "Quantized",
    "Request",
    "Runnable",
    "Verification",
    "apply",
    "load",
    "measure",
    "quantize",
    "save",
    "solve",
    "verify",
]

"""Post-training quantization driven by measured natural precision.

    import natprec
    m = natprec.measure(model, tokenizer, "text.txt")   # what each width costs, per site
    plan = m.solve(eps=0.01, engine="vllm")             # each site's format
    q = plan.apply(model, tokenizer, "text.txt")        # in memory
    natprec.save(q, "out")                              # a checkpoint that engines load
    natprec.verify("out", model, "held-out.txt")        # KL on text never seen
    runnable = natprec.load("out")                      # runnable(input_ids=ids), on its codes

`natprec.pipeline.quantize` is the same as one job, `natprec quantize` its command.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natprec.config import QuantizeConfig
    from natprec.distortions import Distortion, FeatureDistance
    from natprec.errors import BudgetError, InputError, ModelError, NatprecError, OutputError
    from natprec.evaluation.verification import Verification
    from natprec.formats import Format
    from natprec.measurement import Curve, Measurement
    from natprec.pipeline.api import Quantized, apply, measure, save, verify
    from natprec.pipeline.plotting import plot
    from natprec.pipeline.quantize import quantize
    from natprec.runtime.load import Runnable
    from natprec.runtime.pipelines import RunnablePipeline, load
    from natprec.solver.choices import Choice
    from natprec.solver.plan import Plan
    from natprec.solver.solve import solve
    from natprec.tasks import Samples

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
    "QuantizeConfig",
    "Quantized",
    "Runnable",
    "RunnablePipeline",
    "Samples",
    "Verification",
    "apply",
    "load",
    "measure",
    "plot",
    "quantize",
    "save",
    "solve",
    "verify",
]

_HOMES = {
    "natprec.pipeline.api": ("Quantized", "apply", "measure", "save", "verify"),
    "natprec.config": ("QuantizeConfig",),
    "natprec.distortions": ("Distortion", "FeatureDistance"),
    "natprec.errors": ("BudgetError", "InputError", "ModelError", "NatprecError", "OutputError"),
    "natprec.evaluation.verification": ("Verification",),
    "natprec.formats": ("Format",),
    "natprec.measurement": ("Curve", "Measurement"),
    "natprec.pipeline.plotting": ("plot",),
    "natprec.pipeline.quantize": ("quantize",),
    "natprec.runtime.load": ("Runnable",),
    "natprec.runtime.pipelines": ("RunnablePipeline", "load"),
    "natprec.solver.choices": ("Choice",),
    "natprec.solver.plan": ("Plan",),
    "natprec.solver.solve": ("solve",),
    "natprec.tasks": ("Samples",),
}
"""Module → its names that are the package's; it is imported when one is first asked for, since torch takes seconds."""


def __getattr__(name: str) -> Any:
    """A public name, or a module of the package."""
    for module, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(module), name)
            return value
    if not name.startswith("_") and importlib.util.find_spec(f"natprec.{name}"):
        return importlib.import_module(f"natprec.{name}")
    raise AttributeError(f"module 'natprec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

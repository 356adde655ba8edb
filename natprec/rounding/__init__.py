"""From a plan to codes: round to nearest, or GPTQ."""

from natprec.rounding.apply import ROUNDINGS, apply_plan, refuse_unknown_rounding

__all__ = ["ROUNDINGS", "apply_plan", "refuse_unknown_rounding"]

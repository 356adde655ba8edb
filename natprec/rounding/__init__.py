"""From a plan to codes: round to nearest, or GPTQ; then, if wanted, refinement."""

from natprec.rounding.apply import (
    ROUNDINGS,
    apply_batches,
    apply_plan,
    needed_gauges,
    refuse_unknown_rounding,
    restore,
    snapshot,
)

__all__ = [
    "ROUNDINGS",
    "apply_batches",
    "apply_plan",
    "needed_gauges",
    "refuse_unknown_rounding",
    "restore",
    "snapshot",
]

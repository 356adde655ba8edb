"""From a plan to codes: round to nearest, GPTQ, YAQA or learned; then, if wanted, refinement."""

from natprec.rounding.apply import (
    apply_batches,
    apply_plan,
    needed_gauges,
    restore,
    snapshot,
)

__all__ = [
    "apply_batches",
    "apply_plan",
    "needed_gauges",
    "restore",
    "snapshot",
]

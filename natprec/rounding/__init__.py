"""From a plan to codes: round to nearest, GPTQ, YAQA or learned; then, if wanted, learning against the end."""

from natprec.rounding.apply import apply_batches, lookups_in, rounded_segments

__all__ = ["apply_batches", "lookups_in", "rounded_segments"]

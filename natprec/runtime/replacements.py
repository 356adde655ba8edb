"""What of a model is computed otherwise than transformers' modules do, and what is not, with the cause."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from natprec.runtime.added import replace_residuals
from natprec.runtime.blocks import replace_blocks
from natprec.runtime.compare import device_of
from natprec.runtime.gated import fuses, replace_gated
from natprec.runtime.norms import replace_norms
from natprec.runtime.stack import replace_stack


@dataclass(frozen=True)
class Replaced:
    """Forwards that were replaced.

    Attributes:
        norms: how many are one operation.
        blocks: decoder block → why it stays plain; empty where it is a few calls.
        stack: why a single token goes through transformers' own loop over the blocks; empty if it does not.
        gated: gated product → why it stays plain; empty where the kernels of its Linears finish it. On a GPU.
        residuals: decoder block → why residuals are operations of their own; empty where kernels add them. On a GPU.
    """

    norms: int = 0
    blocks: dict[str, str] = field(default_factory=dict)
    stack: str = ""
    gated: dict[str, str] = field(default_factory=dict)
    residuals: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For `natprec generate --explain`."""
        said = [
            *_counted(self.blocks, "decoder blocks", "run as one call for a token"),
            *_counted(self.gated, "gated products", "are finished inside their kernels"),
            *_counted(self.residuals, "decoder blocks", "add their residuals inside kernels"),
        ]
        if self.norms:
            said.append(f"{self.norms} norms run as one operation")
        if self.blocks:
            said.append(
                f"transformers' own loop over the blocks runs ({self.stack})"
                if self.stack
                else "a token goes through all blocks in one call"
            )
        return said


def _counted(found: dict[str, str], what: str, done: str) -> list[str]:
    """One line for each cause."""
    first = {cause: name for name, cause in reversed(found.items())}
    return [
        f"{count} {what} run as transformers' modules, first {first[cause]} ({cause})"
        if cause
        else f"{count} {what} {done}, first {first[cause]}"
        for cause, count in Counter(found.values()).items()
    ]


def replace(model: Any, causal: bool) -> Replaced:
    """All that can be, each tried against what it replaces."""
    fused = any(fuses(module) for module in model.modules())
    if not fused and device_of(model).type != "cpu":
        return Replaced()
    norms = replace_norms(model)
    if fused:
        gated = replace_gated(model)
        return Replaced(norms, gated=gated, residuals=replace_residuals(model) if causal else {})
    if not causal:
        return Replaced(norms)
    blocks = replace_blocks(model)
    return Replaced(norms, blocks, replace_stack(model))

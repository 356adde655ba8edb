"""What of a model on the CPU is computed otherwise than transformers' modules do, and what is not, with the cause."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from natprec.runtime.blocks import replace_blocks
from natprec.runtime.norms import replace_norms
from natprec.runtime.stack import replace_stack


@dataclass(frozen=True)
class Replaced:
    """Forwards that were replaced.

    Attributes:
        norms: how many are one operation.
        blocks: decoder block → why it stays plain; empty where it is a few calls.
        stack: why a single token goes through transformers' own loop over the blocks; empty if it does not.
    """

    norms: int = 0
    blocks: dict[str, str] = field(default_factory=dict)
    stack: str = ""

    def lines(self) -> list[str]:
        """For `natprec generate --explain`."""
        alike = Counter(self.blocks.values())
        first = {cause: name for name, cause in reversed(self.blocks.items())}
        said = [
            f"{count} decoder blocks run as transformers' modules, first {first[cause]} ({cause})"
            if cause
            else f"{count} decoder blocks run as one call for a token, first {first[cause]}"
            for cause, count in alike.items()
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


def replace(model: Any, causal: bool) -> Replaced:
    """All that can be, each tried against what it replaces."""
    norms = replace_norms(model)
    if not causal:
        return Replaced(norms)
    blocks = replace_blocks(model)
    return Replaced(norms, blocks, replace_stack(model))

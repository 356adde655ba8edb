"""The text that judges: read or written, in two parts, each in an order of which every beginning is spread over it.

The first part judges the first plan. If that fails, a correction is made by what the first part said, and the second
part judges it: a text that decided a plan does not judge it. With no text given, the model's own text judges, and
ordinary text that it did not write.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from natprec.config import QuantizeConfig
from natprec.data.ordinary import NAME, ORDINARY
from natprec.data.seen import NO_PIECES, Pieces, source_digest
from natprec.data.windows import GENERATE_BATCH, generate_tokens
from natprec.errors import InputError
from natprec.evaluation.judging import GivenText
from natprec.evaluation.verdict import MOST, HeldOutText
from natprec.measurement.subject import Subject
from natprec.pipeline.samples import read_samples
from natprec.tasks import Samples
from natprec.utils.progress import Stages
from natprec.utils.records import OWN_TEXT, public_name

PARTS = 2

STRIDE = 0x9E3779B1
"""Between the seeds of batches: far from the seeds that users give, and from each other."""

FEWEST = 2
"""Windows of a text that is short, one for each part."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out texts of a run: those that are read, and whether the model writes one."""

    config: QuantizeConfig
    subject: Subject
    stages: Stages
    read: dict[str, tuple[str | None, Samples]]
    writes: bool

    @property
    def names(self) -> list[str]:
        """Names of the texts."""
        return [OWN_TEXT] * self.writes + list(self.read)

    def part(self, number: int) -> list[HeldOutText]:
        """The texts of a part, unread; those that have nothing for it are left out."""
        written: list[HeldOutText] = []
        if self.writes:
            written.append(WrittenText(self.subject, self.config.length, self.config.seed, number, self.stages))
        parts = [(name, digest, part_of(windows, number, self._fixed)) for name, (digest, windows) in self.read.items()]
        return written + [GivenText(name, windows, digest) for name, digest, windows in parts if len(windows)]

    @property
    def _fixed(self) -> int | None:
        """Windows of the first part of each text, where the user gave their number."""
        tokens = self.config.eval_tokens
        return None if tokens is None else max(1, round(tokens / len(self.names) / self.config.length))


def held_out(config: QuantizeConfig, subject: Subject, stages: Stages, seen: Pieces = NO_PIECES) -> HeldOut:
    """Read what judges, so that a text that cannot is refused before anything is measured.

    Args:
        seen: of what was measured on; windows with a piece of it do not judge.
    Raises:
        InputError: nothing to read, or not enough.
    """
    source = config.eval_data or config.data
    if source is None and not subject.writes:
        if subject.task.generates:
            raise InputError(
                "a model whose weights are on disk is too slow to write its own text; give text with --eval-data"
            )
        raise InputError("no text, and an encoder cannot write it; name a file or hub dataset with --eval-data")
    writes = source is None
    tokens = config.eval_tokens
    each = max(1, round((tokens / (2 if writes else 1) if tokens else MOST) / config.length))
    windows = read_samples(
        config if not writes else replace(config, text_column=None),
        subject,
        stages,
        source or str(ORDINARY),
        PARTS * each,
        FEWEST if tokens is None else each,
        seen,
    )
    name = NAME if source is None else public_name(source)
    digest = source_digest(source or str(ORDINARY))
    return HeldOut(config, subject, stages, {name: (digest, windows)}, writes)


def part_of(windows: Samples, number: int, fixed: int | None) -> Samples:
    """One of two parts of samples, both spread over all of them; the first has `fixed` or half.

    >>> part_of(Samples.text(torch.arange(6).view(6, 1)), 0, None).ids.flatten().tolist()
    [1, 5, 3]
    """
    count = len(windows)
    size = min(count, fixed or -(-count // PARTS))
    first = [(2 * index + 1) * count // (2 * size) for index in range(size)]
    chosen = first if number == 0 else sorted(set(range(count)) - set(first))
    return windows[torch.tensor([chosen[place] for place in spread(len(chosen))], dtype=torch.int64)]


def spread(count: int) -> list[int]:
    """0 … count-1 by their reversed bits: every beginning is spread evenly (van der Corput 1935).

    >>> spread(6)
    [0, 4, 2, 1, 5, 3]
    """
    bits = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda number: int(f"{number:0{bits}b}"[::-1], 2))


@dataclass
class WrittenText:
    """The model's own text, written as it is asked for, the same whatever the portions."""

    subject: Subject
    length: int
    seed: int
    part: int
    stages: Stages
    name: str = OWN_TEXT
    digest: str | None = None
    _rows: list[Tensor] = field(default_factory=list, init=False)
    _batches: int = field(default=0, init=False)

    def take(self, tokens: int) -> Samples | None:
        """The next windows: see `HeldOutText`."""
        wanted = max(1, -(-tokens // self.length))
        missing = -(-(wanted - sum(map(len, self._rows))) // GENERATE_BATCH)
        if missing > 0:
            with self.stages.stage(f"held-out text, {OWN_TEXT}", missing) as advance:
                for _ in range(missing):
                    self._rows.append(self._batch())
                    advance("")
        rows = torch.cat(self._rows)
        self._rows = [rows[wanted:]]
        return Samples.text(rows[:wanted]).to(next(self.subject.model.parameters()).device)

    def _batch(self) -> Tensor:
        """Each batch has a seed of its own, of whose bits torch takes the lower 32."""
        number = self._batches * PARTS + self.part
        self._batches += 1
        seed = (2 * self.seed + 1 + number * STRIDE) % 2**63
        return generate_tokens(self.subject.model, self.subject.tokenizer, GENERATE_BATCH, self.length, seed)

"""The text that judges: read or written, in two parts, each in an order of which every beginning is spread over it.

The first part judges the first plan. If that fails, a correction is made by what the first part said, and the second
part judges it: a text that decided a plan does not judge it. With no text given, the model's own text judges, and
ordinary text that it did not write.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from natprec.config import QuantizeConfig
from natprec.data.folders import divided
from natprec.data.ordinary import NAME, ORDINARY
from natprec.data.pictured_text import PicturedText
from natprec.data.seen import NO_PIECES, Pieces, source_digest
from natprec.data.windows import GENERATE_BATCH, generate_tokens
from natprec.errors import InputError
from natprec.evaluation.judging import GivenText
from natprec.evaluation.verdict import MOST, HeldOutText
from natprec.measurement.subject import Subject
from natprec.pipeline.samples import length_of, pictured_samples, read_samples
from natprec.pipeline.together import made_by_first
from natprec.tasks import Samples
from natprec.utils.progress import Advance, Stages
from natprec.utils.records import OWN_TEXT, PICTURES, public_name

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
        pictures = [] if self.subject.pictures is None else [pictures_name(self.subject.pictures)]
        return [OWN_TEXT] * self.writes + list(self.read) + pictures

    def part(self, number: int) -> list[HeldOutText]:
        """The texts of a part, unread; those that have nothing for it are left out."""
        written: list[HeldOutText] = []
        if self.writes:
            written.append(WrittenText(self.subject, self.config.length, self.config.seed, number, self.stages))
        parts = [(name, digest, part_of(windows, number, self._fixed)) for name, (digest, windows) in self.read.items()]
        found = written + [GivenText(name, windows, digest) for name, digest, windows in parts if len(windows)]
        if self.subject.pictures is not None:
            files = divided(self.subject.pictures.files)[1][number::PARTS]
            seed = 2 * self.config.seed + 1 + number * STRIDE
            found += [PicturesAsked(self.config, self.subject, self.stages, files, seed)] if files else []
        return found

    @property
    def _fixed(self) -> int | None:
        """Windows of the first part of each text, where the user gave their number."""
        tokens = self.config.eval_tokens
        return (
            None if tokens is None else max(1, round(tokens / len(self.names) / length_of(self.config, self.subject)))
        )


def held_out(config: QuantizeConfig, subject: Subject, stages: Stages, seen: Pieces = NO_PIECES) -> HeldOut:
    """Read what judges, so that a text that cannot is refused before anything is measured.

    Args:
        seen: of what was measured on; windows with a piece of it do not judge.
    Raises:
        InputError: nothing to read, or not enough; or processes read different text.
    """
    source, own = config.eval_data or config.source, subject.task.own
    if source is None and not (subject.writes or own or subject.encodes_ordinary):
        if subject.task.generates:
            raise InputError(
                "a model whose weights are on disk is too slow to write its own text; give text with --eval-data"
            )
        raise InputError(
            f"no {subject.task.material}, and {subject.task.noun} cannot write it; name a file, folder or hub dataset "
            "with --eval-data"
        )
    writes = source is None and subject.writes
    texts = (2 if writes else 1) + (subject.pictures is not None)
    tokens = config.eval_tokens
    each = max(1, round((tokens / texts if tokens else MOST) / length_of(config, subject)))
    windows = read_samples(
        config if source is not None else replace(config, text_column=None),
        subject,
        stages,
        source or (None if own else str(ORDINARY)),
        PARTS * each,
        each if tokens is not None else FEWEST if subject.task.material == "text" else 1,
        seen,
    )
    name = own or NAME if source is None else public_name(source)
    digest = None if own and source is None else source_digest(source or str(ORDINARY))
    subject.segmented.workers.refuse_difference("held-out text", f"{name} {windows.digest}".encode())
    return HeldOut(config, subject, stages, {name: (digest, windows)}, writes)


def pictures_name(pictures: PicturedText) -> str:
    """Of the text about pictures, in files that are passed on."""
    return f"{PICTURES}{pictures.name}"


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
class PicturesAsked:
    """Pictures, each with a question and the model's own answer, made as they are asked for."""

    config: QuantizeConfig
    subject: Subject
    stages: Stages
    files: list[Path]
    seed: int
    digest: str | None = None
    _taken: int = field(default=0, init=False)

    @property
    def name(self) -> str:
        """See `pictures_name`."""
        assert self.subject.pictures is not None
        return pictures_name(self.subject.pictures)

    def take(self, tokens: int) -> Samples | None:
        """The next samples: see `HeldOutText`. After the last picture the first one is asked about again."""
        count = max(1, -(-tokens // self.config.length))
        first = self._taken % len(self.files)
        files = [*self.files[first:], *self.files[:first]]
        seed = (self.seed + self._taken) % 2**63
        self._taken += count

        def made() -> Samples:
            return pictured_samples(self.config, self.subject, self.stages, files, count, seed, "held-out")

        return made_by_first(made, self.subject)


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
            workers = self.subject.segmented.workers
            numbers = range(self._batches, self._batches + missing)
            self._batches += missing
            with self.stages.stage(f"held-out text, {OWN_TEXT}", len(workers.share(missing))) as advance:
                own = [self._batch(numbers[place], advance) for place in workers.share(missing)]
                written = save({f"{place:06}": rows.cpu().contiguous() for place, rows in enumerate(own)})
                for content in workers.all_bytes(written):
                    self._rows += [rows for _, rows in sorted(load(content).items())]
        rows = torch.cat(self._rows)
        self._rows = [rows[wanted:]]
        return Samples.text(rows[:wanted]).to(next(self.subject.model.parameters()).device)

    def _batch(self, number: int, advance: Advance) -> Tensor:
        """Each batch has a seed of its own, of whose bits torch takes the lower 32, so any process can write it."""
        seed = (2 * self.seed + 1 + (number * PARTS + self.part) * STRIDE) % 2**63
        rows = generate_tokens(self.subject.model, self.subject.tokenizer, GENERATE_BATCH, self.length, seed)
        advance("")
        return rows

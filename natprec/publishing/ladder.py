"""A ladder's own page: sizes of one model, each on a branch of its name, with their table and plot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from natprec.errors import InputError
from natprec.evaluation.verification import Verification
from natprec.pipeline.ladder import LADDER
from natprec.publishing.base import Published
from natprec.publishing.card import document, render
from natprec.publishing.contents import Contents, read_contents
from natprec.publishing.front_matter import front_matter, repository_name
from natprec.publishing.markdown import block, code, section, table, text
from natprec.publishing.sections import meaning, original
from natprec.publishing.usage import licence, repository
from natprec.publishing.wording import words
from natprec.reporting.chart import Chart, Point
from natprec.utils.human import human_bytes
from natprec.utils.marks import CARD_MADE_BY, CARDS, listed
from natprec.utils.own_files import parsed

CARD, PLOT = CARDS


@dataclass(frozen=True)
class Ladder:
    """A folder of rungs, the smallest first; the name of each is that of its folder and branch."""

    name: str
    rungs: dict[str, Contents]

    @property
    def judged(self) -> dict[str, Verification]:
        """Of the rungs that have been measured."""
        return {name: each.verification for name, each in self.rungs.items() if each.verification is not None}


def is_ladder(folder: Path) -> bool:
    """Whether a folder is one of rungs."""
    return (folder / LADDER).is_file()


def read_ladder(folder: Path, published: Published | None = None) -> Ladder:
    """Read each rung.

    Raises:
        InputError: ladder.json or a rung cannot be used; or they are of different models.
    """
    try:
        names = [str(rung["name"]) for rung in parsed((folder / LADDER).read_bytes())["rungs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(folder / LADDER)!r} cannot be read ({error}); quantize again") from error
    # a rung that could not be judged is in no row
    names += sorted({name.split("/")[0] for name in listed(folder) or {} if name.endswith("/plan.json")} - {*names})
    if not names or any("/" in name or name.startswith(".") for name in names):
        raise InputError(f"{str(folder / LADDER)!r} names no rungs of its folder; quantize again")
    rungs = {name: read_contents(folder / name) for name in names}
    first, *others = rungs.values()
    for other in others:
        if other.plan.model_digest != first.plan.model_digest:
            raise InputError(
                f"folder {str(folder)!r} holds rungs of different models: {first.name} is of weights "
                f"{first.plan.model_digest}, {other.name} of {other.plan.model_digest}; quantize again"
            )
    if published is not None:
        rungs = {name: replace(each, published=replace(published, revision=name)) for name, each in rungs.items()}
    return Ladder(folder.resolve().name, dict(sorted(rungs.items(), key=lambda each: each[1].plan.bits_per_weight)))


def render_ladder(ladder: Ladder) -> str:
    """README.md of the repository's main branch."""
    contents = next(iter(ladder.rungs.values()))
    label, unit, _ = words(contents.plan.distortion)
    whole = replace(
        contents, verification=None, evaluation=None, name=ladder.name
    )  # no figure here is of one rung alone
    rows = []
    for name, rung in ladder.rungs.items():
        found, plan = rung.verification, rung.plan
        stored = plan.stored_bytes if found is None else found.stored_bytes
        measured = ("not verified", "", "", "") if found is None else (
            f"{found.kl_mean:.4g}", f"{found.kl_ci95[0]:.4g} to {found.kl_ci95[1]:.4g}",
            "" if found.perplexity_quantized is None else f"{found.perplexity_quantized:.3f}",
            "" if found.top1_agreement is None else f"{found.top1_agreement:.2%}",
        )  # fmt: skip
        rows.append((code(name), f"{plan.bits_per_weight:.3f}", human_bytes(stored), *measured))
    head = ("branch", "bits per weight", "stored", f"{label}, {unit}".rstrip(", "), "interval", "perplexity",
            "same likeliest token")  # fmt: skip
    smallest, place = next(iter(ladder.rungs)), repository(contents)
    return document(
        front_matter(whole),
        f"# {text(repository_name(whole))}",
        f"{len(ladder.rungs)} sizes of {original(contents)}, all solved from one measurement; each is a branch with a "
        "card of its own. Sizes were asked for, and no tolerance: the figures are what each size costs.",
        section("Sizes", table(head, rows), *([f"![{label} by size]({PLOT})"] if len(ladder.judged) > 1 else [])),
        meaning(contents if contents.verification is not None else whole),
        section(
            "Run one",
            block(f"hf download {place} --revision {smallest}"),
            block(f"natprec solve {place} --eps 0.02 --out plan.json" if contents.header is not None else ""),
        ),
        licence(contents),
    )


def plot(ladder: Ladder) -> str:
    """The measured distortion of each size with its interval, as SVG; the same files give the same bytes."""
    plan = next(iter(ladder.rungs.values())).plan
    label, unit, _ = words(plan.distortion)
    points = [
        Point(found.stored_bytes / 1e6, found.kl_mean, name, found.kl_ci95) for name, found in ladder.judged.items()
    ]
    line = {label: [(point.x, point.y) for point in points]}
    return Chart("stored, MB", f"{label}, {unit}".rstrip(", "), line, points).file(f"{label} by size", CARD_MADE_BY)


def rendered(folder: Path) -> str:
    """README.md of a checkpoint's folder, or of a ladder's."""
    return pages(folder)[CARD]


def pages(folder: Path) -> dict[str, str]:
    """README.md, and the plot beside it where a ladder has one: name → content."""
    if not is_ladder(folder):
        return {CARD: render(read_contents(folder))}
    ladder = read_ladder(folder)
    return {CARD: render_ladder(ladder), **({PLOT: plot(ladder)} if len(ladder.judged) > 1 else {})}

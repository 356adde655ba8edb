"""A model card that nobody types: README.md, rendered from the JSON files beside it.

The same files give the same bytes, so a card that differs from its rendering was changed by hand.
"""

from __future__ import annotations

from natprec.evaluation.verdict import FAIL
from natprec.publishing.contents import Contents
from natprec.publishing.front_matter import front_matter, repository_name
from natprec.publishing.markdown import text
from natprec.publishing.scores import scores
from natprec.publishing.sections import figures, meaning, original, scope, verdict_line
from natprec.publishing.usage import licence, limits, reproduce, run_it
from natprec.utils.marks import CARD_MADE_BY


def render(contents: Contents) -> str:
    """README.md of a checkpoint."""
    source = f"{original(contents)}, quantized with natprec: its precision was measured and solved for a target."
    return document(
        front_matter(contents),
        f"# {text(repository_name(contents))}{_mark(contents)}",
        source[:1].upper() + source[1:],
        verdict_line(contents),
        *_unverified(contents),
        figures(contents),
        scores(contents),
        scope(contents),
        meaning(contents),
        run_it(contents),
        reproduce(contents),
        limits(contents),
        licence(contents),
    )


def document(front: str, *parts: str) -> str:
    """A card from its front matter and paragraphs."""
    return "\n\n".join([f"---\n{front}\n---", CARD_MADE_BY, *filter(None, parts)]) + "\n"


def _mark(contents: Contents) -> str:
    """Beside the title, where the promise is not vouched for."""
    if contents.verification is None or _reason(contents):
        return " (not verified)" if not _failed(contents) else " (FAILS its promise)"
    return " (FAILS its promise)" if _failed(contents) else ""


def _failed(contents: Contents) -> bool:
    return contents.verdict == FAIL


def _reason(contents: Contents) -> str:
    return "" if contents.published is None else contents.published.unverified


def _unverified(contents: Contents) -> list[str]:
    reason = _reason(contents)
    return [f"Published with `--allow-unverified`: {text(reason)}."] if reason else []

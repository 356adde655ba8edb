"""`natprec push`: a checkpoint to the Hub, with its card, its verification and its measurement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from natprec.commands.options import Json, own
from natprec.utils.options import MODEL, OUTPUT

if TYPE_CHECKING:
    from natprec.publishing.publish import Outcome

EXAMPLES = (
    "natprec push smollm2-natprec NAMESPACE/SmolLM2-135M-natprec --tag eps-0.05",
    "natprec push smollm2-natprec NAMESPACE/SmolLM2-135M-natprec --public --dry-run",
    "natprec push ladder NAMESPACE/SmolLM2-135M-natprec",
)


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint of natprec's, or its ladder.")],
    repository: Annotated[str, typer.Argument(metavar="NAMESPACE/NAME", help="Repository on the Hub.")],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            rich_help_panel=OUTPUT,
            help="Visibility of a new repository; default: private unless the original is public and permissive.",
        ),
    ] = None,
    revision: Annotated[str, own("--revision", OUTPUT, "Branch; one that does not exist is made.")] = "main",
    tag: Annotated[str | None, own("--tag", OUTPUT, "Tag for the commit, such as eps-0.05.")] = None,
    create_pr: Annotated[bool, own("--create-pr", OUTPUT, "Open a pull request instead.")] = False,
    base_model: Annotated[
        str | None, own("--base-model", MODEL, "The original on the Hub, ID or ID@REVISION, where it came from a file.")
    ] = None,
    no_measurement: Annotated[
        bool, own("--no-measurement", OUTPUT, "Leave out what others could solve another tolerance from.")
    ] = False,
    report: Annotated[
        bool,
        own("--report", OUTPUT, "Add report.html, the page of natprec report, with what lies beside the checkpoint."),
    ] = False,
    allow_unverified: Annotated[
        bool,
        own("--allow-unverified", OUTPUT, "Push without a verification that vouches for it; the card's title says so."),
    ] = False,
    dry_run: Annotated[bool, own("--dry-run", OUTPUT, "Check everything, send nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Push a verified checkpoint as one commit, read it back and compare every file.

    The token is that of `hf auth login` or HF_TOKEN. Refused: a failed promise, files that were changed since they were
    judged, a namespace or repository of others. A ladder goes up as a branch for each size.
    """
    from natprec.commands.output import print_json
    from natprec.publishing.publish import Request, publish
    from natprec.utils.progress import Stages

    asked = Request(
        repository, private, revision, tag, create_pr, base_model, not no_measurement, report, allow_unverified, dry_run
    )
    outcome = publish(folder, asked, Stages())
    if as_json:
        print_json(outcome.to_json())
    else:
        _show(outcome)


def _show(outcome: Outcome) -> None:
    """A line for each branch."""
    from natprec.utils.human import human_bytes

    for each in outcome.commits:
        what = f"{each.files} files, {human_bytes(each.bytes)}"
        if outcome.dry_run:
            print(f"{each.branch}: {what} would be pushed; {', '.join(outcome.names[each.branch])}")
        elif each.new:
            print(f"{each.branch}: {what} pushed and read back, commit {each.commit}")
        else:
            print(f"{each.branch}: these files are there already, commit {each.commit}")
        if each.pull_request:
            print(f"pull request: {each.pull_request}")
    if outcome.unverified:
        print(f"not verified, and the card says so: {outcome.unverified}")
    print(f"{'private' if outcome.private else 'public'}: {outcome.url}")

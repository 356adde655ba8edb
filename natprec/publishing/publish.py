"""From a folder to a repository: what goes up, in which order, and what is refused before.

A checkpoint is one commit on one branch. A ladder is a branch for each rung, and at last `main` with their table: until
then the page shows nothing that is not there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natprec.errors import InputError
from natprec.evaluation.verify import MEASUREMENT
from natprec.models.hub import HubName, explained_by_hub
from natprec.pipeline.ladder import LADDER
from natprec.publishing.account import (
    PUSHING,
    refuse_account,
    refuse_name,
    refuse_others_files,
    refuse_reference,
    resolved_base,
)
from natprec.publishing.base import Base, Published
from natprec.publishing.card import render
from natprec.publishing.contents import REPORT, Contents, read_contents
from natprec.publishing.ladder import CARD, PLOT, is_ladder, plot, read_ladder, render_ladder
from natprec.publishing.push import MAIN, Commit, Upload, reach, refuse_tag, send, set_tag, with_record
from natprec.publishing.vouch import own_files, refuse_private, vouched
from natprec.reporting.page import page
from natprec.reporting.sources import gather
from natprec.utils.progress import Stages

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class Request:
    """What a user asks for; attributes as the options of `natprec push`.

    Attributes:
        private: None: private, unless the original is public under a permissive licence.
    """

    repository: str
    private: bool | None = None
    revision: str = MAIN
    tag: str | None = None
    create_pr: bool = False
    base_model: str | None = None
    measurement: bool = True
    report: bool = False
    allow_unverified: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a push did, or with a dry run would do."""

    repository: str
    url: str
    private: bool
    base: Base | None
    unverified: str
    tag: str | None
    dry_run: bool
    commits: list[Commit]
    names: dict[str, list[str]]

    def to_json(self) -> dict[str, Any]:
        """Plain values; with `commit` and `revision` of the last one, which is all there is but for a ladder."""
        last = self.commits[-1]
        return {
            "repository": self.repository,
            "url": self.url,
            "commit": last.commit,
            "revision": last.branch,
            "new": any(each.new for each in self.commits),
            "private": self.private,
            "tag": self.tag,
            "base_model": None if self.base is None else f"{self.base.id}@{self.base.revision}",
            "unverified": self.unverified,
            "dry_run": self.dry_run,
            "commits": [each.to_json() for each in self.commits],
            "files": self.names,
        }


def publish(folder: Path, asked: Request, stages: Stages) -> Outcome:
    """Push a checkpoint, or a ladder.

    Raises:
        NatprecError: whatever stands against it, before anything is sent; or what went wrong then.
    """
    refuse_name(asked.repository)
    refuse_reference("revision", asked.revision)
    refuse_reference("tag", asked.tag)
    ladder = is_ladder(folder)
    if ladder and (asked.revision != MAIN or asked.tag or asked.create_pr):
        raise InputError("a ladder has a branch for each rung; leave out --revision, --tag and --create-pr")
    rungs = _rungs(folder) if ladder else {asked.revision: (folder, read_contents(folder))}
    reasons = {name: vouched(place, each, asked.allow_unverified) for name, (place, each) in rungs.items()}
    for place, _ in rungs.values():
        own_files(place, asked.measurement)
    from huggingface_hub import HfApi

    api = HfApi()
    refuse_account(api, asked.repository)
    base = resolved_base(api, next(iter(rungs.values()))[1].plan, asked.base_model)
    uploads = [
        _upload(place, each, Published(asked.repository, name, base, reasons[name]), asked)
        for name, (place, each) in rungs.items()
    ]
    if ladder:
        uploads.append(_overview(folder, Published(asked.repository, MAIN, base, ""), asked))
    there = reach(api, asked.repository, [each.branch for each in uploads])
    for each in uploads:
        refuse_private(each.files)
        refuse_others_files(there[each.branch], asked.repository, each.files)
    known = there[uploads[0].branch]
    refuse_tag(known, asked.tag, asked.repository)
    wanted = asked.private if asked.private is not None else not (base is not None and base.permissive)
    outcome = Outcome(
        asked.repository, f"{api.endpoint}/{asked.repository}", known.private if known.exists else wanted, base,
        next(filter(None, reasons.values()), ""), asked.tag, asked.dry_run,
        [Commit(each.branch, None, False, len(each.files), each.bytes) for each in uploads],
        {each.branch: sorted(each.files) for each in uploads},
    )  # fmt: skip
    return outcome if asked.dry_run else _send_all(api, asked, outcome, uploads, stages)


def _send_all(api: HfApi, asked: Request, outcome: Outcome, uploads: list[Upload], stages: Stages) -> Outcome:
    with explained_by_hub(HubName.of(asked.repository), PUSHING):
        api.create_repo(asked.repository, private=outcome.private, exist_ok=True)
    commits = []
    for upload in uploads:
        there = reach(api, asked.repository, [upload.branch])[upload.branch]
        commits.append(send(api, asked.repository, upload, there, stages, asked.create_pr))
    if asked.tag is not None and commits[-1].commit is not None:
        set_tag(api, asked.repository, asked.tag, commits[-1].commit)
    return replace(outcome, commits=commits)


def _rungs(folder: Path) -> dict[str, tuple[Path, Contents]]:
    return {name: (folder / name, each) for name, each in read_ladder(folder).rungs.items()}


def _upload(folder: Path, contents: Contents, published: Published, asked: Request) -> Upload:
    """A checkpoint's branch."""
    header = contents.header if asked.measurement else None
    shown = replace(contents, published=published, header=header, report=asked.report)
    files: dict[str, Path | bytes] = {**own_files(folder, asked.measurement), CARD: render(shown).encode()}
    if asked.report:
        files[REPORT] = page(gather(folder, measured=asked.measurement)).encode()
    found, plan = contents.verification, contents.plan
    measured = "not verified" if found is None else f"{found.distortion} {found.kl_mean:.4g}"
    message = f"natprec: {plan.bits_per_weight:.2f} bits per weight, {measured}"
    return with_record(Upload(published.revision, files, message), published)


def _overview(folder: Path, published: Published, asked: Request) -> Upload:
    """A ladder's main branch: the table of all rungs, their plot, and what they were solved from."""
    ladder = read_ladder(folder, published)
    if not asked.measurement:
        ladder = replace(ladder, rungs={name: replace(each, header=None) for name, each in ladder.rungs.items()})
    files: dict[str, Path | bytes] = {LADDER: folder / LADDER, CARD: render_ladder(ladder).encode()}
    if len(ladder.judged) > 1:
        files[PLOT] = plot(ladder).encode()
    measured = folder / next(iter(ladder.rungs)) / MEASUREMENT
    if asked.measurement and measured.is_file():
        files[MEASUREMENT.as_posix()] = measured
    return with_record(Upload(MAIN, files, f"natprec: {len(ladder.rungs)} sizes of one model"), published)

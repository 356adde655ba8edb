"""`natprec push`: one commit, whole or absent, that is read back and compared.

Everything that can be refused is refused before the first byte is sent. `create_commit` sends large files first and
then one request that makes the commit, on the condition that the branch is where it was; a run that dies before leaves
the repository as it was. (`upload_folder` may split a push into several commits when files go by Xet.)
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natprec.errors import InputError, ModelError, NatprecError, OutputError, first_line
from natprec.models.devices import quiet
from natprec.models.hub import HubName, explained_by_hub
from natprec.publishing.account import PUSHING, Remote, refuse_others_files, remote
from natprec.publishing.base import FILE
from natprec.utils.digests import file_digest
from natprec.utils.progress import Stages
from natprec.utils.system_faults import remedy_of, told

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"


@dataclass(frozen=True)
class Upload:
    """What a branch is to hold: name → file, or content that was rendered."""

    branch: str
    files: dict[str, Path | bytes]
    message: str

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(len(each) if isinstance(each, bytes) else each.stat().st_size for each in self.files.values())


@dataclass(frozen=True)
class Commit:
    """What became of an upload.

    Attributes:
        commit: on the Hub; None: nothing was sent.
        new: whether this push made it; else the branch held these files already.
        pull_request: its address, where one was asked for.
    """

    branch: str
    commit: str | None
    new: bool
    files: int
    bytes: int
    pull_request: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def refuse_tag(there: Remote, tag: str | None, repository: str) -> None:
    """A tag that exists stays where it is, unless this push makes no new commit: see `set_tag`.

    Raises:
        InputError: it is a branch.
    """
    if tag is not None and tag in there.branches:
        raise InputError(f"tag {tag!r} is a branch of {repository!r}; choose another")


def send(
    api: HfApi, repository: str, upload: Upload, there: Remote, stages: Stages, create_pr: bool = False
) -> Commit:  # fmt: skip
    """Commit an upload on its branch, which is made if need be, and read it back.

    Raises:
        InputError: somebody pushed meanwhile.
        ModelError: no connection, or no access; or what came back is not what was sent.
        OutputError: it is pushed, and could not be read back.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    refuse_others_files(there, repository, upload.files)
    with stages.stage(f"push {upload.branch}"), _sending(repository):
        head = there.head or _branch(api, repository, upload.branch)
        stale = sorted(set(there.files) - {*upload.files, ".gitattributes"})
        operations: list[Any] = [
            *(CommitOperationAdd(name, value) for name, value in upload.files.items()),
            *(CommitOperationDelete(name, is_folder=False) for name in stale),
        ]
        made = api.create_commit(
            repository, operations, commit_message=upload.message, revision=upload.branch, parent_commit=head,
            create_pr=create_pr,
        )  # fmt: skip
    found = Commit(
        upload.branch, made.oid, made.oid != head, len(upload.files), upload.bytes,
        made.pr_url if create_pr else None,
    )  # fmt: skip
    with stages.stage("read back"):
        read_back(repository, made.oid, upload)
    return found


def _branch(api: HfApi, repository: str, branch: str) -> str:
    """The commit that a new branch begins with."""
    sha = api.model_info(repository).sha
    if branch != MAIN:
        api.create_branch(repository, branch=branch, revision=sha)
    return str(sha)


def set_tag(api: HfApi, repository: str, tag: str, commit: str) -> None:
    """A tag on a commit.

    Raises:
        InputError: it is on another one.
    """
    with _sending(repository):
        known = {each.name: each.target_commit for each in api.list_repo_refs(repository).tags}
        if tag not in known:
            api.create_tag(repository, tag=tag, revision=commit)
    if known.get(tag, commit) != commit:
        raise InputError(
            f"tag {tag!r} of {repository!r} is on commit {known[tag]}, and stays there; commit {commit} is pushed "
            "without it: choose another tag and push again"
        )


def read_back(repository: str, commit: str, upload: Upload) -> None:
    """Download a commit into a cache of its own and compare every file.

    Raises:
        ModelError: a file is another one, or missing.
        OutputError: it could not be read.
    """
    from huggingface_hub import snapshot_download

    pushed = f"{repository!r} has it as commit {commit}, but it was not read back"
    try:
        with _scratch("natprec-read-back-") as cache, quiet():
            folder = Path(snapshot_download(repository, revision=commit, cache_dir=cache))
            for name, value in upload.files.items():
                _compare(folder / name, value, f"{repository}@{commit}")
    except NatprecError:
        raise
    except Exception as error:
        remedy = remedy_of(error) or "check the connection"
        raise OutputError(
            f"{pushed} ({first_line(error)}); {remedy}, then push again: nothing is sent twice"
        ) from error


@contextlib.contextmanager
def _scratch(prefix: str) -> Iterator[str]:
    """A temporary folder; a disk that fails once does not leave it behind, and one that fails twice fails no push."""
    folder = tempfile.mkdtemp(prefix=prefix)
    try:
        yield folder
    finally:
        for _ in range(2):
            shutil.rmtree(folder, ignore_errors=True)


def _compare(there: Path, here: Path | bytes, where: str) -> None:
    if isinstance(here, bytes):
        same = there.is_file() and there.read_bytes() == here
    else:
        same = there.is_file() and file_digest(there) == file_digest(here)
    if not same:
        raise ModelError(f"{there.name!r} of {where} is not what was sent; push again, and do not use that commit")


@contextlib.contextmanager
def _sending(repository: str) -> Iterator[None]:
    """Explain what goes wrong while something is sent."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with explained_by_hub(HubName.of(repository), PUSHING), quiet():
            try:
                yield
            except HfHubHTTPError as error:
                if error.response is None or error.response.status_code != 412:
                    raise
                raise InputError(f"somebody pushed to {repository!r} meanwhile; look at it, then push again") from error
            except (ConnectionError, RuntimeError) as error:
                if error.__cause__ is not None and (cause := told(error.__cause__)) is not None:
                    raise OutputError(f"{PUSHING} {repository!r}: {cause}") from error
                if "xet" not in str(error).lower():
                    raise
                raise ModelError(
                    f"{PUSHING} {repository!r}: this Hub does not take large files by Xet; set HF_HUB_DISABLE_XET=1"
                ) from error
    except FileNotFoundError as error:
        raise InputError(f"a file vanished while it was sent ({error.filename}); push again") from error


def record(published: Any) -> dict[str, bytes]:
    """natprec/published.json, as an upload holds it."""
    return {FILE: (json.dumps(published.to_json(), indent=2) + "\n").encode()}


def with_record(upload: Upload, published: Any) -> Upload:
    """An upload that says where it was published."""
    return replace(upload, files={**upload.files, **record(published)})


def reach(api: HfApi, repository: str, branches: list[str]) -> dict[str, Remote]:
    """What is on each branch."""
    return {branch: remote(api, repository, branch) for branch in branches}

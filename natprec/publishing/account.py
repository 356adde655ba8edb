"""Who pushes, and what the Hub holds already: all that can be refused before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from natprec.errors import InputError, ModelError, first_line
from natprec.models.hub import HubName, explained_by_hub, has_token
from natprec.publishing.base import FILE, Base
from natprec.solver import Plan

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PUSHING = "cannot push to"

LONGEST = 96
"""Characters of a repository's name, with its namespace."""

GIVEN = (".gitattributes", "README.md")
"""Files that the Hub itself may have put into a new repository."""


def refuse_name(name: str) -> None:
    """Refuse what can be no repository of the Hub.

    Raises:
        InputError: says what is wrong with it.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if len(name) > LONGEST:
        raise InputError(f"repository {name!r} has {len(name)} characters, and the Hub takes {LONGEST}; shorten it")
    if name.count("/") != 1 or "@" in name:
        raise InputError(f"repository {name!r}: give NAMESPACE/NAME; a branch goes into --revision")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"repository {name!r} is no name that the Hub takes ({first_line(error)})") from error


def refuse_reference(option: str, name: str | None) -> None:
    """Refuse what git cannot call a branch or tag."""
    if name is not None and (not re.fullmatch(r"\w[\w./+-]*\w|\w", name) or ".." in name):
        raise InputError(f"{option} {name!r} is no name of a branch or tag; use letters, digits, '.', '-' and '_'")


def refuse_account(api: HfApi, repository: str) -> str:
    """The user's name; refuses whoever may not write there.

    Raises:
        InputError: no token, an unknown one, one that only reads, or a namespace of others.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    namespace = repository.partition("/")[0]
    if not has_token():
        raise InputError("pushing needs a token that may write, and there is none; run hf auth login, or set HF_TOKEN")
    with explained_by_hub(HubName.of(repository), PUSHING):
        try:
            found = api.whoami()
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code != 401:
                raise
            raise InputError("the Hub does not accept your token; run hf auth login again") from error
    user = str(found["name"])
    token = (found.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise InputError(
            f"your token only reads; make one that may write at {constants.ENDPOINT}/settings/tokens, then run "
            "hf auth login"
        )
    own = {user, *(str(each["name"]) for each in found.get("orgs") or [])}
    if namespace not in own:
        raise InputError(
            f"namespace {namespace!r} is not yours; you are {user!r}, and may push to {', '.join(sorted(own))}"
        )
    return user


@dataclass(frozen=True)
class Remote:
    """A branch on the Hub; `head` None: the repository or the branch does not exist yet.

    Attributes:
        exists: whether the repository does; `private`: whether it is.
        files: on the branch.
        tags: tag → commit.
    """

    exists: bool
    private: bool
    head: str | None
    files: tuple[str, ...]
    tags: dict[str, str]
    branches: dict[str, str]


def remote(api: HfApi, repository: str, branch: str) -> Remote:
    """What is there.

    Raises:
        ModelError: no connection, or no access.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    with explained_by_hub(HubName.of(repository), PUSHING):
        try:
            found = api.model_info(repository)
        except RepositoryNotFoundError:
            return Remote(False, False, None, (), {}, {})
        refs = api.list_repo_refs(repository)
        branches = {each.name: each.target_commit for each in refs.branches}
        head = branches.get(branch)
        # a new branch begins with what main holds
        files = api.list_repo_files(repository, revision=head or found.sha)
        tags = {each.name: each.target_commit for each in refs.tags}
        return Remote(True, bool(found.private), head, tuple(files), tags, branches)


def refuse_others_files(there: Remote, repository: str, ours: Iterable[str]) -> None:
    """Stop before files of others are mixed with ours.

    Raises:
        InputError: the repository holds some, and no record of a publication by natprec.
    """
    if FILE in there.files:
        return
    others = sorted(set(there.files) - {*ours, *GIVEN})
    if others:
        raise InputError(
            f"repository {repository!r} holds {others[0]!r} and no record that natprec published there; choose another "
            "name"
        )


def resolved_base(api: HfApi, plan: Plan, named: str | None) -> Base | None:
    """The original on the Hub, with its licence; None: it did not come from there, and nobody named it.

    Args:
        named: `--base-model`.
    Raises:
        InputError: the one named is another repository or commit than the one that was measured.
        ModelError: it is not to be had.
    """
    made = plan.provenance
    measured = None if made is None or made.model_revision is None else HubName.of(made.model)
    if measured is not None and made is not None:
        measured = HubName(measured.id, made.model_revision)
    hub = HubName.of(named) if named is not None else measured
    if hub is None:
        return None
    if named is not None and measured is not None and hub.id != measured.id:
        raise InputError(f"base-model {named!r}: the plan was measured on {measured}; leave --base-model out")
    with explained_by_hub(hub):
        found = api.model_info(hub.id, revision=hub.revision)
    if measured is not None and found.sha != measured.revision:
        raise InputError(f"base-model {str(hub)!r} is commit {found.sha}, the plan was measured on {measured}")
    if found.sha is None:
        raise ModelError(f"the Hub names no commit of {str(hub)!r}; try again later")
    return Base(
        hub.id, found.sha, compared=measured is not None, public=not found.private and not found.gated,
        pipeline_tag=found.pipeline_tag, **_licence(found.card_data),
    )  # fmt: skip


def _licence(card: object) -> dict[str, Any]:
    """What a card's front matter says of its terms and languages, where it is of the kind that the Hub reads."""
    found: dict[str, Any] = {}
    for name in ("license", "license_name", "license_link"):
        value = getattr(card, name, None)
        found[name] = str(value) if isinstance(value, str) else None
    language = getattr(card, "language", None)
    several = [language] if isinstance(language, str) else language if isinstance(language, list) else []
    found["language"] = [str(each) for each in several]
    return found

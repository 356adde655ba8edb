"""Models and checkpoints on the Hub: `NAMESPACE/NAME` or `NAMESPACE/NAME@REVISION`, a branch, tag or commit.

Everything is asked of huggingface_hub, which knows the token, the endpoint and the cache. Each way to fail has its own
sentence with the one remedy that applies: the Hub's own answers name several.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natprec.errors import ModelError, NatprecError, first_line
from natprec.utils.json_text import from_json

SMALL = (
    "*.json", "*.txt", "*.model", "*.py", "*.jinja", "*.tiktoken", "natprec/*", "*_Dense/model.safetensors",
    "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
"""Files of a repository that are not the weights of its transformer."""

LOADING = "cannot load model"
"""What is tried, unless a caller says otherwise."""

_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class HubName:
    """A repository of models, `id`, at a `revision`; None: its main branch."""

    id: str
    revision: str | None = None

    @classmethod
    def of(cls, name: str) -> HubName:
        """As a user spells it.

        >>> HubName.of("owner/model@v1"), HubName.of("owner/model")
        (HubName(id='owner/model', revision='v1'), HubName(id='owner/model', revision=None))
        """
        repository, _, revision = name.partition("@")
        return cls(repository, revision or None)

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


def is_hub_name(name: str) -> bool:
    """Whether a name can be one of a repository with its namespace, and is nothing on this machine.

    >>> is_hub_name("owner/model@eps-0.01"), is_hub_name("./folder"), is_hub_name("folder")
    (True, False, False)
    """
    repository = HubName.of(name).id
    return bool(_ID.fullmatch(repository)) and "/" in repository and name[0] not in "." and not Path(name).exists()


def checkpoint_path(given: str | Path) -> Path:
    """The folder of a checkpoint: the path itself, or where its files from the Hub lie.

    Raises:
        ModelError: it is on the Hub, and not to be had.
    """
    return download(str(given)) if is_hub_name(str(given)) else Path(given)


def measurement_path(given: str | Path) -> Path:
    """The file of a measurement: the path itself, or the one in a repository of the Hub.

    Raises:
        ModelError: the repository is not to be had, or holds none.
    """
    return one_file(str(given), "natprec/measurement.safetensors") if is_hub_name(str(given)) else Path(given)


def plan_path(given: str | Path) -> Path:
    """The file of a plan, as `measurement_path`."""
    return one_file(str(given), "plan.json") if is_hub_name(str(given)) else Path(given)


def one_file(name: str, file: str) -> Path:
    """A file of a repository, in the Hub's cache.

    Raises:
        ModelError: the repository is not to be had, or holds none.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    hub = HubName.of(name)
    with explained_by_hub(hub):
        try:
            return Path(hf_hub_download(hub.id, file, revision=hub.revision))
        except RemoteEntryNotFoundError as error:
            raise ModelError(f"{str(hub)!r} has no {file}; name a repository that natprec push wrote") from error


def download(name: str) -> Path:
    """The files of a model, in the Hub's cache: first the small ones, then the weights that they name.

    Raises:
        ModelError: it is not to be had; says why.
    """
    from huggingface_hub import snapshot_download

    hub = HubName.of(name)
    with explained_by_hub(hub):
        folder = _snapshot(hub, SMALL)
        index, wanted = folder / "model.safetensors.index.json", ["model.safetensors"]
        if index.is_file():
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # loading will name the damage
                wanted = sorted({str(file) for file in from_json(index.read_text("utf-8"))["weight_map"].values()})
        elif not (folder / "config.json").is_file():
            wanted = ["model.gguf", "adapter_model.safetensors"]  # natprec's own, beside its plan; PEFT's
        # what the first call found, should a branch have moved meanwhile
        return Path(snapshot_download(hub.id, revision=folder.name, allow_patterns=[*SMALL, *wanted]))


def _snapshot(hub: HubName, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub.id, revision=hub.revision, allow_patterns=list(patterns)))


def stored_on_hub(name: str) -> int | None:
    """Weights of a model, as the Hub counts them; None where it does not say, or cannot be asked."""
    from huggingface_hub import HfApi

    hub = HubName.of(name)
    with contextlib.suppress(Exception):  # no connection or no such model: loading will say which
        found = HfApi().model_info(hub.id, revision=hub.revision).safetensors
        return None if found is None else found.total
    return None


@contextlib.contextmanager
def explained_by_hub(hub: HubName, trying: str = LOADING) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence, which begins with what was tried.

    Raises:
        ModelError: gated, private or missing; no such revision; no valid token; no connection.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except NatprecError:
        raise
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise ModelError(_sentence(hub, trying, error)) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2"):
            raise
        raise ModelError(f"{trying} {hub.id!r}: {_unreachable(trying, error)}") from error


def _sentence(hub: HubName, trying: str, error: Exception) -> str:
    from huggingface_hub import errors

    what = f"{trying} {hub.id!r}"
    if isinstance(error, errors.HFValidationError):
        return f"{what}: that is no name of the Hub; give NAMESPACE/NAME or NAMESPACE/NAME@REVISION"
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return f"{what}: {_answered(hub, error, error.response.status_code)}"
    cause = error.__cause__
    if isinstance(cause, errors.HfHubHTTPError):
        return _sentence(hub, trying, cause)
    if isinstance(error, errors.OfflineModeIsEnabled) or isinstance(cause, errors.OfflineModeIsEnabled):
        here = "it is not in the cache, and " if trying == LOADING else ""
        return f"{what}: {here}HF_HUB_OFFLINE forbids to ask the Hub; unset HF_HUB_OFFLINE"
    return f"{what}: {_unreachable(trying, cause or error)}"


def _unreachable(trying: str, error: BaseException) -> str:
    from huggingface_hub import constants

    here = "no such folder here, and " if trying == LOADING else ""
    return f"{here}{constants.ENDPOINT} cannot be reached ({first_line(error)}); check the connection"


def _answered(hub: HubName, error: Exception, status: int) -> str:
    """What the Hub said, and what to do about it."""
    from huggingface_hub import constants, errors

    page, user = f"{constants.ENDPOINT}/{hub.id}", account()
    if isinstance(error, errors.GatedRepoError):
        if user is None:
            return f"it is gated, and you are not logged in; accept its terms at {page}, then run hf auth login"
        return f"it is gated, and your account {user!r} has no access; ask for it at {page}"
    if isinstance(error, errors.RevisionNotFoundError):
        known = ", ".join(revisions(hub.id)) or "none"
        return f"it has no revision {hub.revision!r}; branches and tags: {known}"
    if isinstance(error, errors.RepositoryNotFoundError):
        if user is None and has_token():
            return "the Hub does not accept your token; run hf auth login again"
        if user is None:
            return (
                "the Hub shows no such model to who is not logged in; check the spelling, or if it is private run "
                "hf auth login"
            )
        return f"the Hub shows no such model to your account {user!r}; check the spelling, or ask its owner for access"
    if status == 401:
        return "the Hub does not accept your token; run hf auth login again"
    if status == 403:
        return f"your token has no right to it; make one that has at {constants.ENDPOINT}/settings/tokens"
    return f"the Hub answers {status} ({first_line(error)}); try again later"


def has_token() -> bool:
    """Whether huggingface_hub has a token; what it is stays there."""
    from huggingface_hub import get_token

    return get_token() is not None


def account() -> str | None:
    """The user whom the token belongs to; None: there is none, or the Hub does not know it."""
    from huggingface_hub import HfApi

    with contextlib.suppress(Exception):
        found: dict[str, Any] = HfApi().whoami()
        return str(found["name"])
    return None


def revisions(repository: str) -> list[str]:
    """Branches, then tags; none where they cannot be asked for."""
    from huggingface_hub import HfApi

    with contextlib.suppress(Exception):
        found = HfApi().list_repo_refs(repository)
        return [each.name for each in (*found.branches, *found.tags)]
    return []

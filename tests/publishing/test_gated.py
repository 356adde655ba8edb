"""Gated repositories: what is made of one stays private, and whoever has no access is told the one remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub import Hub
from tests.publishing.test_push import NAME, pushed, refused
from tests.run_command import natprec

COMMANDS = {
    "generate": ("generate", NAME, "--prompt", "a"),
    "solve": ("solve", NAME, "--eps", "1"),
    "check": ("check", NAME, "--gpu", "h100"),
    "verify": ("verify", NAME, "--model", "alice/tiny"),
    "eval": ("eval", NAME, "--model", "alice/tiny", "--tasks-data", ".", "--tasks", "words"),
    "report": ("report", NAME, "--out", "r.html"),
}


def test_what_is_made_of_a_gated_original_is_private_unless_said(hub: Hub, checkpoint: Path) -> None:
    """Though its licence is permissive: not everybody may read the original."""
    hub.repositories["alice/tiny"].gated = True
    assert pushed(checkpoint, "--dry-run")["private"]
    assert not pushed(checkpoint, "--dry-run", "--public")["private"]
    assert pushed(checkpoint)["private"]
    assert hub.repositories[NAME].private


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (None, ("is gated", "accept its terms at", "then run hf auth login")),
        ("hf_bob", ("your account 'bob' has no access; ask for it at",)),
        ("hf_unknown", ("does not accept your token; run hf auth login again",)),
    ],
    ids=["no token", "no access", "unknown token"],
)
def test_a_gated_checkpoint(
    hub: Hub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None,
    words: tuple[str, ...],
) -> None:  # fmt: skip
    pushed(checkpoint, "--public")
    hub.repositories[NAME].gated = True
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "another"))
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    for command in COMMANDS.values():
        result = natprec(*command)
        refused(result, *words)
        assert NAME in result.err, command
    monkeypatch.setenv("HF_TOKEN", "hf_granted")
    assert natprec(*COMMANDS["solve"], "--json").code == 0


@pytest.mark.parametrize(
    ("token", "words"),
    [(None, ("needs a token that may write", "hf auth login")), ("hf_reader", ("your token only reads",))],
)
def test_a_push_of_what_came_from_a_gated_original(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, words: tuple[str, ...]
) -> None:
    hub.repositories["alice/tiny"].gated = True
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    refused(natprec("push", checkpoint, NAME), *words)
    assert NAME not in hub.repositories


def test_a_push_into_a_repository_that_others_have_to_ask_for(hub: Hub, checkpoint: Path) -> None:
    """Its owner reads it back."""
    pushed(checkpoint, "--public")
    hub.repositories[NAME].gated = True
    assert pushed(checkpoint, "--no-measurement")["new"]

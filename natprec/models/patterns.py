"""Regular expressions that a checkpoint brings, matched in bounded time.

`(a+)+b` takes Python's matcher longer than anyone waits, and nothing in this process can stop it: another one matches
all patterns with all names, and is ended when its time is over.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from natprec.errors import ModelError

MARK = "re:"
"""What a target begins with that is a regular expression, in compressed-tensors."""

SECONDS = 10.0
"""That all patterns of a checkpoint may take together; those that quantizers write take milliseconds."""

_MATCHER = """
import json, re, sys
patterns, names = json.load(sys.stdin)
found = {}
for pattern in patterns:
    try:
        match = re.compile(pattern).match
    except (re.error, RecursionError, OverflowError) as error:
        sys.exit(f"{pattern!r} is no regular expression ({error})")
    found[pattern] = [name for name in names if match(name)]
json.dump(found, sys.stdout)
"""


class Targets:
    """Names that the `re:` targets of a checkpoint match; asked for in one go, and again only for new names."""

    def __init__(self, targets: Iterable[str], names: Iterable[str], where: str) -> None:
        """Match all patterns among `targets` with all `names`.

        Args:
            where: the checkpoint, for errors.
        Raises:
            ModelError: a pattern is none, or takes too long.
        """
        self._where = where
        self._found: dict[str, set[str]] = {
            target: set() for target in targets if isinstance(target, str) and target.startswith(MARK)
        }
        self._known: set[str] = set()
        self._ask(names)

    def match(self, name: str, targets: Collection[str]) -> bool:
        """Whether one of these targets is a pattern that matches the name from its beginning, as `re.match` does."""
        if self._found and name not in self._known:
            self._ask([name])
        return any(name in self._found[target] for target in targets if target in self._found)

    def _ask(self, names: Iterable[str]) -> None:
        new = sorted(set(names) - self._known)
        self._known.update(new)
        if not self._found or not new:
            return
        question = json.dumps([[target.removeprefix(MARK) for target in self._found], new])
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", _MATCHER],
                input=question, capture_output=True, text=True, timeout=SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ModelError(
                f"the regular expressions among the targets of {self._where!r} take more than {SECONDS:g} s to match; "
                "name its modules in config.json instead, or quantize the original again"
            ) from error
        if done.returncode:
            cause = done.stderr.strip().splitlines()[-1:] or ["the matcher died"]
            raise ModelError(f"a target of {self._where!r}: {cause[0]}; correct config.json, or quantize again")
        for pattern, matched in json.loads(done.stdout).items():
            self._found[MARK + pattern].update(matched)


class Groups:
    """The `config_groups` of a quantization_config, by the modules that they name."""

    def __init__(self, groups: Mapping[str, Mapping[str, Any]], tensors: Iterable[str], where: str) -> None:
        """Match all targets with the modules of all tensors.

        Args:
            tensors: names in the checkpoint; `where` names it, for errors.
        Raises:
            ModelError: a pattern among the targets is none, or takes too long.
        """
        self._groups = list(groups.values())
        targets = [target for group in self._groups for target in group["targets"]]
        self._patterns = Targets(targets, (name.rpartition(".")[0] for name in tensors), where)

    def of(self, module: str) -> dict[str, Any] | None:
        """The group that names a module; single names before regular expressions."""
        named = (group for group in self._groups if module in group["targets"])
        matched = (group for group in self._groups if self._patterns.match(module, group["targets"]))
        found = next(named, None) or next(matched, None)
        return None if found is None else dict(found)

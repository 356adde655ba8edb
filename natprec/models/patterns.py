"""Regular expressions that a checkpoint brings, matched in bounded time.

`(a+)+b` takes Python's matcher longer than anyone waits, and nothing in this process can stop it: another one matches
all patterns with all names, and is ended when its time is over.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Iterable

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

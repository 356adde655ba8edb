"""Every family of transformers, tiny and with random weights: right, refused by name, or wrong.

    python scripts/families.py                              # all, an hour or so on two cores, in one process
    python scripts/families.py --only llama,mixtral --json
    python scripts/families.py --table docs/models.md       # writes the table between its marks
    python scripts/families.py --resume rows.json           # goes on with what an earlier run kept there

Each model that `family_models.py` can build is quantized twice for engine transformers, weights alone and with 8-bit
inputs, keys and values, then verified again, run by `natprec generate` and by plain transformers in float32 on the very
tokens that were judged.

right    every command ends with 0 (3 where the tolerance is missed), the KL that plain transformers gives equals the
         verdict's to 6 digits (4 where inputs are rounded as the model runs), its loader misses nothing, and
         `case_checks.py` finds nothing silently wrong; natprec's own runtime may refuse by name what it has no kernel
         for, such as an 8-bit cache
refused  one line that names the cause, exit code 2
wrong    anything else

Exit code 1 if any is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any
from unittest import mock

import torch
import transformers
from case_checks import CHECKS, Trial, other_in_transformers
from family_models import VOCABULARY, families, output, written
from same_bytes import byte_tokenizer, made_up_text
from torch import Tensor
from torch.nn import functional

from natprec.evaluation import verify
from natprec.utils.records import without_places

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.run_command import natprec

ROUNDED = "inputs and cache"
VARIANTS = {
    "weights": (),
    ROUNDED: ("--activations", "8", "--kv", "8", "--rounding", "rtn", "--transforms", "none"),  # what else is the same
}
SMALL = ("--tokens", "512", "--eval-tokens", "512", "--sequence-length", "32", "--group-size", "32")
DIGITS = 1e-5
"""Relative; a KL of float32 logits has six digits at most."""
BORDER = 1e-4
"""Relative, where inputs are rounded as the model runs: a value on the border of two codes falls to either side by the
order in which a processor adds, and each that falls otherwise moves the KL by about a part in 100,000."""
LEAST = 1e-8
WHY = 160
"""Characters of a reason in the table."""
START, END = "<!-- families -->", "<!-- /families -->"


@dataclass
class Row:
    """What became of a family in one way."""

    family: str
    kind: str
    variant: str
    verdict: str = "right"
    says: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def wrong(self, what: str) -> None:
        """Enter a fault."""
        self.verdict = "wrong"
        self.says.append(without_places(what)[:300])


@contextlib.contextmanager
def judged_text() -> Iterator[list[Tensor]]:
    """The token ids of every portion of text that the last verdict is made from."""
    found: list[Tensor] = []
    known = verify.compared

    def noted(
        subject: Any, quantized: Any, folder: Path, samples: Any, resume: Any, advance: Any, number: int, *rest: Any
    ) -> Any:
        if number == 0:  # a plan that was solved once more is judged on other tokens
            found.clear()
        found.append(samples.ids.clone())
        return known(subject, quantized, folder, samples, resume, advance, number, *rest)

    with mock.patch.object(verify, "compared", noted):
        yield found


def plain(kind: str, source: Path, made: Path, ids: Tensor) -> tuple[float, dict[str, list[str]]]:
    """How far a checkpoint is from its original, in plain transformers and float32, and what its loader misses."""
    auto = transformers.AutoModel if kind == "encoder" else transformers.AutoModelForCausalLM
    outputs, misses, computed = [], {}, set[str]()
    for folder in (source, made):
        model, report = auto.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        outputs.append(torch.cat([output(model.eval(), batch) for batch in ids.split(4)]).double())
        computed |= {name for name, _ in model.named_buffers()} - model.state_dict().keys()  # of the dense one, too
        misses = {name: sorted({*map(str, found)} - computed) for name, found in report.items()}
        misses = {name: found for name, found in misses.items() if found}
    if kind == "encoder":
        first, second = (functional.normalize(each.mean(1), dim=-1) for each in outputs)
        return float((first - second).square().sum(-1).mean()), misses
    first, second = (each.log_softmax(-1) for each in outputs)
    return float((first.exp() * (first - second)).sum(-1).mean()), misses


def tried(family: str, kind: str, variant: str, source: Path, text: Path, scratch: Path) -> Row:
    """One family in one way."""
    row, made, start = Row(family, kind, variant), scratch / "made", time.monotonic()
    arguments = ["--model", source, "--eps", "0.05", "--data", text, "--engine", "transformers", *SMALL]
    arguments = [str(each) for each in [*arguments, *VARIANTS[variant], "--out", made, "--overwrite"]]
    with judged_text() as ids:
        code, out, err = natprec("quantize", *arguments)
    reasons = [line for line in err.splitlines() if line.startswith("natprec: ")]
    if code == 2 and len(reasons) == 1 and "Traceback" not in err:
        row.verdict, row.says = "refused", [without_places(reasons[0].removeprefix("natprec: "))]
    elif code not in (0, 3):
        row.wrong(f"quantize: exit code {code}: {(err.strip().splitlines() or ['?'])[-1]}")
    else:
        trial = Trial(source, made, ["quantize", *arguments], out + err)
        for check in CHECKS:
            if check is not other_in_transformers:
                for line in check(trial):
                    row.wrong(line)
        _again(row, source, made, text, torch.cat(ids))
    row.seconds = round(time.monotonic() - start, 1)
    return row


def _again(row: Row, source: Path, made: Path, text: Path, ids: Tensor) -> None:
    """Verify, generate, and ask plain transformers."""
    first = json.loads((made / "verification.json").read_text())["kl_mean"]
    near = (BORDER if row.variant == ROUNDED else DIGITS) * abs(first) + LEAST
    code, out, err = natprec("verify", made, "--model", source, "--eval-data", text, "--json")
    if code not in (0, 3):
        row.wrong(f"verify: exit code {code}: {(err.strip().splitlines() or ['?'])[-1]}")
    elif abs((again := json.loads(out)["kl_mean"]) - first) > near:
        row.wrong(f"verify says {again:.8g}, quantize {first:.8g}")
    if row.kind == "causal":
        code, _, err = natprec("generate", made, "--prompt", "some words", "--max-new-tokens", "4", "--greedy")
        if code == 2 and "Traceback" not in err:
            said = err.strip().splitlines()[-1].removeprefix("natprec: ").replace(f" {str(made)!r}", "")
            row.says.append(f"generate refuses: {without_places(said)}")
        elif code:
            row.wrong(f"generate: exit code {code}: {(err.strip().splitlines() or ['?'])[-1]}")
    try:
        found, misses = plain(row.kind, source, made, ids)
    except Exception as error:  # whatever another library raises
        row.wrong(f"plain transformers: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
        return
    for name, which in misses.items():
        row.wrong(f"plain transformers: {len(which)} {name.replace('_', ' ')}, first {which[0]}")
    if abs(found - first) > near:
        row.wrong(f"plain transformers gives {found:.8g}, the verdict {first:.8g}")


class TooLong(BaseException):
    """Past what one step may take; no handler of an Exception catches it."""


def _ring(*_: object) -> None:
    raise TooLong


def rows(family: str, kind: str, limit: int) -> list[Row]:
    """Both ways of one family; where it cannot be built, one row that says so."""
    with tempfile.TemporaryDirectory(prefix="natprec-family-") as folder:
        scratch = Path(folder)
        (text := scratch / "text.txt").write_text(made_up_text(4000))
        found: list[Row] = []
        signal.signal(signal.SIGPROF, _ring)
        signal.setitimer(signal.ITIMER_PROF, limit)  # of computing: other programs may want this machine, too
        try:
            written(family, kind == "encoder", scratch / "input", byte_tokenizer(VOCABULARY, kind == "encoder"))
            for variant in VARIANTS:
                signal.setitimer(signal.ITIMER_PROF, limit)
                found.append(tried(family, kind, variant, scratch / "input", text, scratch))
        except TooLong:
            found.append(Row(family, kind, "", "wrong" if found else "not built", [f"longer than {limit} s"]))
        except Exception as error:
            if found or (scratch / "input" / "config.json").is_file():
                found.append(Row(family, kind, "", "wrong", [f"{type(error).__name__}: {error}"]))
            else:
                found.append(Row(family, kind, "", "not built", [f"{type(error).__name__}: {str(error)[:120]}"]))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        return found


def table(found: list[Row]) -> str:
    """For a document: a line for each family."""
    lines = ["| family | kind | weights | inputs and cache | why |", "|---|---|---|---|---|"]
    for family in (family for family in families() if any(row.family == family for row in found)):
        own = {row.variant: row for row in found if row.family == family}
        cells = [own[variant].verdict if variant in own else "–" for variant in VARIANTS]
        if "" in own:
            cells = [own[""].verdict] * len(VARIANTS)
        why = "; ".join(dict.fromkeys(" ".join(line.split()) for row in own.values() for line in row.says[:1]))
        why = shorten(why.replace("|", "/"), WHY, placeholder=" …")
        lines.append(f"| {family} | {next(iter(own.values())).kind} | {' | '.join(cells)} | {why} |")
    return "\n".join(lines)


def main() -> None:
    """A line for each, then how many there are of each verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="model types, with commas between")
    parser.add_argument("--limit", type=int, default=180, help="seconds of computing that one way may take")
    parser.add_argument("--table", type=Path, help="document whose table is written anew")
    parser.add_argument("--resume", type=Path, help="JSON file that keeps the rows")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    kept = json.loads(options.resume.read_text()) if options.resume and options.resume.is_file() else []
    found = [Row(**row) for row in kept]
    known, only = {row.family for row in found}, set(filter(None, options.only.split(",")))
    for family, kind in families().items():
        if family in known or (only and family not in only):
            continue
        new = rows(family, kind, options.limit)
        found += new
        if options.resume:
            options.resume.write_text(json.dumps([asdict(row) for row in found], indent=1))
        for row in new if not options.json else ():
            print(f"{family:26} {row.variant:17} {row.verdict:10} {row.seconds:6.1f}  {'; '.join(row.says)[:200]}")
            sys.stdout.flush()
    verdicts = ("right", "refused", "wrong", "not built")
    counts = {verdict: sum(row.verdict == verdict for row in found) for verdict in verdicts}
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in found], "counts": counts}, indent=2))
    else:
        print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if options.table:
        document = options.table.read_text()
        before, after = document.split(START)[0], document.split(END)[1]
        options.table.write_text(f"{before}{START}\n{table(found)}\n{END}{after}")
    sys.exit(counts["wrong"] > 0)


if __name__ == "__main__":
    main()

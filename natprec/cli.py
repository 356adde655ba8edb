"""The command line: its commands, their examples, and exit codes for scripts.

Exit codes: 0 done (and the promise kept), 2 a request that cannot be carried out, 3 the promise is
not kept or a layer cannot run, 4 the checkpoint is written but could not be judged, 130 interrupted.
"""

from __future__ import annotations

import itertools
import sys
from importlib.metadata import version
from typing import Any

import typer

from natprec.commands import (
    apply,
    card,
    check,
    compare,
    costs,
    energy,
    eval,
    generate,
    inspect,
    landscape,
    measure,
    push,
    quantize,
    report,
    serve,
    solve,
    verify,
)
from natprec.errors import InputError, NatprecError, VerdictError
from natprec.utils.human import shortened
from natprec.utils.launcher import SHARED, refuse_many
from natprec.utils.streams import lasting, nobody_reads
from natprec.utils.system_faults import told
from natprec.utils.threads import wait_passively

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""click's error for a wrong option; where it can be imported from depends on typer's version."""

app = typer.Typer(
    name="natprec",
    help="Quantize a language model or encoder to a tolerance: precision is measured and solved, then verified.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    """One line, for whoever reports a bug."""
    if asked:
        beside = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "compressed-tensors"))
        print(f"natprec {version('natprec')} ({beside})")
        raise typer.Exit


@app.callback()
def _before(
    context: typer.Context,
    show_version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Show the versions of natprec and of what it runs on.",
    ),
) -> None:
    """Let waiting threads sleep, and refuse a launcher for what one process does."""
    wait_passively(context.invoked_subcommand)
    if context.invoked_subcommand not in SHARED:
        refuse_many(f"natprec {context.invoked_subcommand}")


def _examples(lines: tuple[str, ...]) -> str:
    return "\n\n".join(("Examples:" if len(lines) > 1 else "Example:", *(f"- `{line}`" for line in lines)))


for _module, _command in (
    (quantize, quantize.quantize),
    (measure, measure.measure),
    (solve, solve.solve),
    (apply, apply.apply),
    (verify, verify.verify),
    (check, check.check),
    (compare, compare.compare),
    (inspect, inspect.inspect),
    (landscape, landscape.landscape),
    (generate, generate.generate),
    (serve, serve.serve),
    (eval, eval.eval),
    (energy, energy.energy),
    (costs, costs.costs),
    (report, report.report),
    (card, card.card),
    (push, push.push),
):
    app.command(epilog=_examples(_module.EXAMPLES))(_command)


def main() -> None:
    """Run the command line; errors that the user can mend are one line and exit code 2."""
    with lasting() as out:
        code = _run()
        if code == 130:
            print(
                "natprec: interrupted; the output was not touched; --resume continues from what was measured",
                file=sys.stderr,
            )
        out.flush()
        if code == 0 and out.error is not None and not nobody_reads():
            code = _refused(f"standard output cannot be written ({out.error.strerror}); files are written all the same")
    sys.exit(code)


def _run() -> int:
    """The exit code of the command that `sys.argv` names."""
    try:
        _refuse_nothing(sys.argv[1:])
        return app(standalone_mode=False) or 0
    except VerdictError as error:
        _refused(str(error))
        return 4
    except NatprecError as error:
        return _refused(str(error))
    except UsageError as error:
        return _refused(_usage(error))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        cause = told(error)
        if cause is None:
            raise
        return _refused(cause)


def _refuse_nothing(given: list[str]) -> None:
    """An empty text in the place of a folder would be the folder that one is in: a variable that is not set.

    Raises:
        InputError: there is one that no option comes before.
    """
    for before, each in itertools.pairwise(given):
        if not each and not before.startswith("-"):
            raise InputError(f"the argument after {before!r} is empty; give a name (is a variable not set?)")


def _refused(text: str) -> int:
    """Say why, on one line; the exit code of a request that cannot be carried out."""
    if text:
        print("natprec: " + shortened(" ".join(text.splitlines())), file=sys.stderr)
    return 2


def _usage(error: Any) -> str:
    """What is wrong with an option; nothing where the help has been shown instead."""
    message = error.format_message().strip().rstrip(".")
    where = error.ctx.command_path if error.ctx else "natprec"
    flags = getattr(getattr(error, "param", None), "opts", [])
    for before, given in zip(sys.argv, sys.argv[1:], strict=False):
        if before in flags and "Invalid value" in message and repr(given) not in message:
            message += f": {given!r}"
    return f"{message}; see {where} --help" if message else ""

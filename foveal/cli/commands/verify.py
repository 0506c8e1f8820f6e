"""`foveal verify`: whether a store is as it was written, and with ``--recompute`` as the network computes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveal.cli.completing import memory_names
from foveal.cli.memories import tell_lost
from foveal.cli.opening import opened
from foveal.cli.options import flag, json_option, memory_limit_option, model_option, store_option, threads_option
from foveal.cli.output import FAILED, INTERRUPTED, UserError, note, print_json, show_bytes, tell

if TYPE_CHECKING:
    from foveal.cli.recomputing import Outcome
    from foveal.store.report import Problem, Report


@click.command("verify")
@click.argument("names", nargs=-1, shell_complete=memory_names, help="Memories to check; default: the whole store.")
@flag("--repair", "Mend what can be mended.")
@flag("--recompute", "Run the network over the memories too, and compare what comes out.")
@click.option(
    "--sample", type=click.IntRange(min=1), metavar="N", help="With --recompute: only so many pages, chosen at random."
)
@model_option
@threads_option
@memory_limit_option
@store_option
@json_option
def command(
    names: tuple[str, ...],
    repair: bool,
    recompute: bool,
    sample: int | None,
    folder: Path | None,
    json: bool,
    **how: Any,
) -> None:
    """Read everything and compare all checksums and references. Exits with 1 and a list when anything is wrong.

    With --recompute every page is also compared with what the network computes of its tokens; an imported memory of
    which all is equal counts as computed here from then on.
    """
    from foveal.cli.recomputing import recompute_all
    from foveal.store.verify import verify

    if sample is not None and not recompute:
        raise click.BadParameter("--sample says how much --recompute computes; give that too")
    store, chosen = opened(folder), list(names) or None
    report = verify(store, chosen, repair=repair)
    again = recompute_all(store, chosen, sample=sample, repair=repair, **how) if recompute else None
    found = [*report.problems, *(again.problems if again is not None else [])]
    if json:
        print_json(document(report, again, found, repair=repair))
    else:
        _tell(report, again, found)
    _conclude(again, found, repair=repair)


def document(report: Report, again: Outcome | None, found: Sequence[Problem], *, repair: bool) -> dict[str, Any]:
    """The JSON of `foveal verify` (docs/cli.md)."""
    told = {
        "sound": not found,
        "memories": report.contexts,
        "objects": report.objects,
        "bytes": report.nbytes,
        "given_up_bytes": sum(report.lost.values()),
        "repaired": repair and bool(found),
        "problems": [
            {
                "what": problem.what,
                "where": problem.where,
                "memories": list(problem.contexts),
                "lost": problem.lost,
                "mended": problem.mended,
            }
            for problem in found
        ],
    }
    return told if again is None else told | {"recomputed": again.document()}


def _tell(report: Report, again: Outcome | None, found: Sequence[Problem]) -> None:
    from foveal.cli.recomputing import tell_outcome

    for problem in found:
        tell(str(problem))
    what = f"{report.objects:,} objects ({show_bytes(report.nbytes)}) of {_memories(report.contexts)}"
    note(f"{what}: all as they were written" if report.sound else f"{what} were read")
    tell_lost(sum(report.lost.values()))
    if again is not None:
        tell_outcome(again)


def _memories(count: int) -> str:
    return f"{count:,} {'memory' if count == 1 else 'memories'}"


def _conclude(again: Outcome | None, found: Sequence[Problem], *, repair: bool) -> None:
    """Exit as what was found asks for."""
    if again is not None and not again.complete:
        raise click.exceptions.Exit(INTERRUPTED)
    if found:
        raise UserError(_counted(found, repair))
    if again is not None and not again.sound:
        raise click.exceptions.Exit(FAILED)


def _counted(problems: Sequence[Problem], repaired: bool) -> str:
    """``3 problems, 1 of them lost; ...``."""
    lost = sum(problem.lost for problem in problems)
    told = f"{len(problems):,} problem{'s' * (len(problems) > 1)}" + (f", {lost:,} of them lost" if lost else "")
    return f"{told}; what can be mended was" if repaired else f"{told}; `foveal verify --repair` mends what can be"

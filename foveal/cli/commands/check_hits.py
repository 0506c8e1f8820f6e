"""`foveal check-hits`: whether a server's prefix cache gives what a cold run gives."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from foveal.cli.options import flag, json_option
from foveal.cli.output import UserError, note, parse_count, parse_counts, print_json, tell
from foveal.errors import installed

if TYPE_CHECKING:
    from foveal.evals.hits import Client, Report

SHOWN = 20
"""Differences that the table shows."""


@click.command("check-hits")
@click.argument("url", help="Where the server is, with or without /v1.")
@click.option("--model", metavar="MODEL", help="Which model; default: the first that is served.")
@click.option("--key", metavar="KEY", help="The server's key; default: $OPENAI_API_KEY.")
@click.option("--api", type=click.Choice(["ids", "text", "chat"]), help="Completions of ids or text, or chats.")
@click.option("--restart", metavar="CMD", help="A command that restarts the server; all is checked again after it.")
@click.option("--lengths", metavar="TOKENS,...", help="Lengths of prompts in tokens, such as 61,128,4k.")
@click.option("--tokens", type=click.IntRange(1, 1000), default=8, metavar="TOKENS", help="Tokens of each reply.")
@click.option(
    "--evict", default="40k", metavar="TOKENS", help="Tokens of other prompts that push all out; 0 leaves that out."
)
@click.option("--parallel", type=click.IntRange(1, 256), default=6, metavar="N", help="Most requests at once.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=0.0,
    metavar="NUMBER",
    help="How far apart log-probabilities may be.",
)
@click.option("--seed", type=int, metavar="N", help="Seed of the random prompts, which the server must not have seen.")
@flag("--quick", "Fewer lengths, and no others are pushed out.")
@json_option
def command(url: str, json: bool, **options: Any) -> int:
    """Check that a server says the same of a prompt it knows.

    For any OpenAI-compatible server with log-probabilities: the same prompts cold, known, forked, beside others, pushed
    out, and after a restart. Prints what differs; the exit code is 1 then.
    """
    if not installed("httpx"):
        raise UserError("check-hits needs httpx, which is not installed: pip install 'foveal[serve]'")
    from foveal.evals.hits import connect

    key = options["key"] or os.environ.get("OPENAI_API_KEY")
    with connect(url, model=options["model"], key=key, api=options["api"]) as client:
        report = _checked(client, options, silent=json)
        if json:
            print_json(_as_json(client, report))
        else:
            _print(client, report)
    return 0 if report.equal else 1


def _checked(client: Client, options: dict[str, Any], *, silent: bool) -> Report:
    from foveal.cli.progress import LiveBar
    from foveal.evals.hits import Checks, check
    from foveal.evals.hits.checking import LENGTHS

    lengths = parse_counts(options["lengths"]) if options["lengths"] else LENGTHS
    with LiveBar("asking", silent=silent) as bar:

        def progress(doing: str, done: int, of: int) -> None:
            bar.show(doing, done, of, f"{done} of {of}")
            bar.tell(f"{doing}: {done} of {of}")

        plan = Checks(
            lengths=lengths[::3] if options["quick"] and not options["lengths"] else lengths,
            tokens=options["tokens"],
            evict=0 if options["quick"] else parse_count(options["evict"]),
            restart=None if options["restart"] is None else _restarting(options["restart"]),
            parallel=options["parallel"],
            tolerance=options["tolerance"],
            seed=options["seed"],
            progress=progress,
        )
        return check(client, plan)


def _restarting(command: str) -> Callable[[], None]:
    words = shlex.split(command)
    if not words:
        raise UserError("--restart is empty; give the command that restarts the server")

    def restart() -> None:
        try:
            done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        except OSError as error:
            raise UserError(f"{command!r} cannot be run: {error.strerror or error}") from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise UserError(f"{command!r} ended with {done.returncode}: {said[-1] if said else 'it said nothing'}")

    return restart


def _as_json(client: Client, report: Report) -> dict[str, Any]:
    return {
        "url": client.url,
        "model": client.model,
        "api": client.api,
        "equal": report.equal,
        "replies": report.replies,
        "lengths": sorted(report.lengths),
        "checks": {check: vars(count) for check, count in report.counts.items()},
        "differences": [each.as_json() for each in report.differences],
        "notes": report.notes(),
    }


def _print(client: Client, report: Report) -> None:
    from foveal.cli.render import print_blocks, table

    counted = table("check", "replies>", "prompt tokens>", "cached>", "different>")
    for name, count in report.counts.items():
        cached = f"{count.cached:,}" if count.told else "not told"
        counted.add_row(name, f"{count.replies:,}", f"{count.tokens:,}", cached, f"{count.different:,}")
    blocks = [counted]
    if report.differences:
        listed = table("check", "tokens>", "cached>", "token>", "expected", "found", "gap>")
        for each in report.differences[:SHOWN]:
            listed.add_row(
                each.check,
                f"{each.prompt_tokens:,}",
                "" if each.cached is None else f"{each.cached:,}",
                str(each.place + 1),
                _side(each.expected),
                _side(each.found),
                "other token" if each.gap is None else f"{each.gap:.3g}",
            )
        blocks.append(listed)
    print_blocks(*blocks)
    if len(report.differences) > SHOWN:
        tell(f"{len(report.differences) - SHOWN:,} more differences are in --json")
    for line in report.notes():
        note(f"note: {line}")
    told = f"{report.replies:,} replies of {client.model} ({client.api})"
    if report.equal:
        tell(f"{told}: equal{'' if not report.tolerance else f' within {report.tolerance:g}'}, whatever was known")
    else:
        tell(f"{told}: {len(report.differences):,} differ from the first reply to the same prompt")


def _side(side: tuple[str, float] | None) -> str:
    return "the end" if side is None else f"{side[0]!r} {side[1]:.9g}"

"""The group of commands: each is imported when it is asked for, and an expected failure is one line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.exceptions import Exit, NoArgsIsHelpError, NoSuchCommand

from foveal.cli import completing
from foveal.cli.output import FAILED, INTERRUPTED, note, one_line, printable
from foveal.errors import FovealError
from foveal.process.failures import reason, show_traceback
from foveal.process.streams import OutputFailed

Table = Mapping[str, tuple[str, str]]
"""Name of a command -> file in `foveal.cli.commands` whose `command` it is, and its help in one line."""


class Commands(click.Group):
    """A group of the commands in `table`, and of those that are added to it.

    It turns expected failures into one line on stderr and an exit code. Expected is what `foveal.process.failures`
    has words for: every `FovealError`, the system's refusals, and that something ran out. Anything else goes up, to
    `foveal.process.life.run`.
    """

    def __init__(self, *arguments: Any, table: Table | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.table = table or {}

    # ------------------------------------------------------------------ which commands there are

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.table, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return super().get_command(ctx, cmd_name)
        found = importlib.import_module(f"foveal.cli.commands.{self.table[cmd_name][0]}").command
        assert isinstance(found, click.Command)
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as error:
            raise NoSuchCommand(error.command_name, possibilities=self.list_commands(ctx), ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """All of the table, without importing any."""
        limit = formatter.width - 6 - max(map(len, self.table), default=0)
        rows = []
        for name, (_, line) in self.table.items():
            rows.append((name, click.Command(name, help=line).get_short_help_str(limit)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    # ------------------------------------------------------------------ how a command ends

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, Exit, click.Abort, OutputFailed):
            raise
        except Exception as error:
            line = reason(error)
            if line is None:
                raise
            show_traceback(error)
            note(f"foveal: {one_line(line)}")
            raise Exit(error.exit_code if isinstance(error, FovealError) else FAILED) from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command of `args` (those of the process): the exit code, or the process's end in `standalone_mode`.

        Unlike click's it leaves alone what nobody expects, and shows wrong usage as `printable`.
        """
        code = completing.answer(self)
        if code is None:
            code = self._run(prog_name or completing.PROGRAM, list(sys.argv[1:] if args is None else args), extra)
        if standalone_mode:
            sys.exit(code)
        return code

    def _run(self, name: str, args: list[str], extra: dict[str, Any]) -> int:
        try:
            with self.make_context(name, args, **extra) as ctx:
                code = self.invoke(ctx)
                return code if isinstance(code, int) else 0
        except Exit as end:
            return end.exit_code
        except click.ClickException as error:
            sys.stderr.write(printable(_told(error), "\n") + "\n")
            sys.stderr.flush()
            return error.exit_code
        except click.Abort:
            note("foveal: aborted")
            return FAILED
        except KeyboardInterrupt:
            return INTERRUPTED


def _told(error: click.ClickException) -> str:
    """The usage of the command, and what was wrong."""
    if isinstance(error, NoArgsIsHelpError):
        return error.format_message()
    context = error.ctx if isinstance(error, click.UsageError) else None
    lines = [f"Error: {error.format_message()}"]
    if context is not None:
        lines = [context.get_usage(), f"Try '{context.command_path} --help' for help.", "", *lines]
    return "\n".join(lines)

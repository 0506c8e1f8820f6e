"""Options and arguments that several commands share, as decorators, and the types of their values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from foveal.cli.completing import memory_names

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Decorated = TypeVar("Decorated", bound=Callable[..., Any] | click.Command)

MOST_THREADS = 1024


class _NamedPath(click.ParamType[Any]):
    """A path, made into what `make` returns. An empty one is refused: a variable that is not set is not the current
    folder."""

    name = "path"

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._make = make

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; name a file or a folder", param, ctx)
        return self._make(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


PATH = _NamedPath(Path)
PATH_TEXT = _NamedPath(str)
"""A path as it was written: it may be ``-``, a pipe, or be named to other programs."""


def flag(name: str, help: str) -> Callable[[Decorated], Decorated]:
    """An option without a value, off unless it is given."""
    return click.option(name, is_flag=True, help=help)


name_argument = click.argument("name", shell_complete=memory_names, help="Name of the memory.")
store_option = click.option(
    "--store", "folder", type=PATH, help="Folder of the store; default $FOVEAL_STORE or ~/.local/share/foveal."
)
model_option = click.option(
    "--model", metavar="MODEL", help="nano, smollm2, or a model directory; default: the memory's own, else nano."
)
threads_option = click.option(
    "--threads", type=click.IntRange(1, MOST_THREADS), metavar="N", help="CPU threads; default: one on each core."
)
memory_limit_option = click.option(
    "--memory-limit",
    metavar="BYTES",
    help="Memory this process may hold (2G); pages beyond that stay on the disk until they are needed.",
)
store_limit_option = click.option(
    "--store-limit", metavar="BYTES", help="Bytes the store may take (20G); what is least valuable is evicted."
)
durability_option = click.option(
    "--durability",
    default="full",
    metavar="LEVEL",
    help="What survives a power cut: full, normal or off (docs/store.md).",
)
plot_option = click.option("--plot", type=PATH, help="Draw it too, to a .png, .svg or .pdf file.")
json_option = flag("--json", "Print JSON.")

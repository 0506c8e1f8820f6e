"""`foveal export`: one memory as one file."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from foveal.cli.opening import opened
from foveal.cli.options import name_argument, store_option
from foveal.cli.output import UserError, note, show_bytes


@click.command("export")
@name_argument
@click.argument("file", type=click.Path(), help="File to write, or - for standard output.")
@store_option
def command(name: str, file: str, folder: Path | None) -> None:
    """Write NAME to one file, checksummed. It is not encrypted, even if the store is."""
    from foveal.store import transfer

    with _writing(file) as out:
        size = transfer.export(opened(folder), name, out)
    note(f"{name}: {show_bytes(size)}")


@contextmanager
def _writing(file: str) -> Iterator[BinaryIO]:
    """Standard output, a pipe or a device, or a new private file that is there only when it is whole."""
    if file == "-":
        if sys.stdout.isatty():
            raise UserError("an exported memory is no text; name a file, or send standard output to one")
        yield sys.stdout.buffer
        return
    target = Path(os.path.realpath(file))
    if target.is_dir():
        raise UserError(f"{file or repr(file)} is a folder; name a file in it")
    if target.exists() and not target.is_file():
        with target.open("wb") as out:
            yield out
        return
    if not target.parent.is_dir():
        raise UserError(f"cannot write {file}: there is no folder {target.parent}")
    descriptor, temporary = tempfile.mkstemp(prefix=".foveal-export-", dir=target.parent)  # of mode 0600
    try:
        with open(descriptor, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)

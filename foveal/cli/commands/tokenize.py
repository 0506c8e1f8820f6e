"""`foveal tokenize`: the token store that training reads."""

from __future__ import annotations

import time
from pathlib import Path

import click

from foveal.cli.extras import check_training
from foveal.cli.options import PATH, flag, json_option
from foveal.cli.output import note, print_json, show_bytes, show_seconds
from foveal.cli.progress import LiveBar


@click.command("tokenize")
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    type=PATH,
    metavar="PATH...",
    help="Files and folders; each file becomes a document.",
)
@click.option("--out", type=PATH, required=True, help="The store: OUT.bin, OUT.idx.npy and OUT.json are written.")
@click.option("--tokenizer", type=PATH, help="A tokenizer.json or its folder; default: that of nano.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only what this glob matches; may be given again.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Nothing that this glob matches.")
@flag("--force", "Make it again even if nothing has changed.")
@json_option
def command(
    paths: tuple[Path, ...],
    out: Path,
    tokenizer: Path | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    force: bool,
    json: bool,
) -> None:
    """Make the memory-mapped token store that training reads. It is made from files and folders."""
    check_training()
    from dataclasses import asdict

    import foveal
    from foveal.train.storing import tokenize

    chosen = tokenizer or Path(foveal.__file__).parent / "weights" / "nano"
    with _StoreBar() as bar:
        stored = tokenize(list(paths), out, chosen, include=include, exclude=exclude, told=bar, force=force)
    if json:
        print_json(asdict(stored))
        return
    state = "nothing has changed: kept" if stored.kept else "wrote"
    rest = f", {stored.skipped:,} skipped" if stored.skipped else ""
    note(
        f"{state} {out}.bin: {stored.tokens:,} tokens in {stored.documents:,} documents "
        f"({show_bytes(stored.text_bytes)} of text{rest})"
    )


class _StoreBar(LiveBar):
    """Bytes done of all, tokens, and time left."""

    def __init__(self) -> None:
        super().__init__("tokenizing")
        self._began = time.monotonic()

    def __call__(self, done: int, total: int, tokens: int, path: str) -> None:
        left = (time.monotonic() - self._began) * max(0, total - done) / max(1, done)
        count = f"{show_bytes(done)} of {show_bytes(total)}, {tokens:,} tokens, {show_seconds(left)} left"
        self.show("tokenizing", done, total, count, path)
        self.tell(f"{count}, {path}")

"""The mean of files of packed entries, number by number: ``python -m foveal.train.distill.mean SOURCE OUT FILE FILE``.

Runs that begin with the same entries (`start_from`) end near each other, and their mean often is better than any of
them (model soups, arXiv 2203.05482).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from foveal.convert import open_source
from foveal.convert.errors import ConvertError
from foveal.convert.learned import load_slots, save_slots
from foveal.convert.packed import Slots
from foveal.process.streams import told


def mean(several: Sequence[dict[int, Slots]]) -> dict[int, Slots]:
    """The mean of what several runs learned. Raises `ConvertError` when they are not of the same heads."""
    heads = [{layer: slots.heads for layer, slots in one.items()} for one in several]
    if any(other != heads[0] for other in heads):
        raise ConvertError("these files are of different heads, so they have no mean")
    names = [field.name for field in dataclasses.fields(Slots) if field.name != "heads"]
    return {
        layer: Slots(
            of, **{name: torch.stack([getattr(one[layer], name) for one in several]).mean(0) for name in names}
        )
        for layer, of in heads[0].items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m foveal.train.distill.mean", description=__doc__)
    parser.add_argument("source", help="what the entries were learned from, as `foveal convert` takes it")
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    given = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="foveal-mean-") as work:
        source = open_source(given.source, Path(work), told)
    found = mean([load_slots(path, source.shape) for path in given.files])
    save_slots(given.out, found, source.shape, f"{source.name}, the mean of {len(given.files)} runs")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

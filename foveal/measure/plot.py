"""A picture of one measurement: rates over depth, memory over depth, and where a decoding step's time goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foveal.measure.settings import MeasureError

_MIB = 2**20
_SHOWN_OPS = 10
"""Operations drawn one by one; the rest is one more."""


def plot(document: dict[str, Any], path: Path) -> None:
    """Draw the document of `measure` to `path` (.png, .svg or .pdf by its ending).

    Raises `MeasureError` when matplotlib is not installed, has no such format, or there is nothing to draw.
    """
    check_plot(path)
    with plain_style():
        _draw(document, path)


@contextmanager
def plain_style() -> Iterator[None]:
    """matplotlib as it is without a ``matplotlibrc``: it would take one from the current folder, with LaTeX to run."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def _draw(document: dict[str, Any], path: Path) -> None:
    rows = document["rows"]
    if not rows:
        raise MeasureError("there is nothing to draw: no depth was measured")
    from matplotlib.figure import Figure

    split = [row["ops"] for row in rows]
    figure = Figure(figsize=(15 if all(split) else 10, 4.2), layout="constrained")
    axes = figure.subplots(1, 3 if all(split) else 2)
    depths = [row["depth"] for row in rows]
    _rates(axes[0], depths, rows)
    _memory(axes[1], depths, rows, document["model"]["weight_bytes"])
    if all(split):
        _ops(axes[2], depths, split)
    figure.suptitle(f"{document['model']['name']}, {document['threads']} threads, {document['machine']['cpu']}")
    figure.savefig(path, dpi=130)


def check_plot(path: Path, extra: str = "bench") -> None:
    """Raise `MeasureError` when `path` could not be drawn to, before hours are spent measuring. `extra`: the extra of
    the package that brings what is needed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MeasureError(f"a plot needs matplotlib; install it with `pip install foveal[{extra}]`") from None
    kinds = Figure().canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise MeasureError(f"cannot draw to {path}: name a file that ends in .{', .'.join(sorted(kinds))}")
    if not path.absolute().parent.is_dir():
        raise MeasureError(f"cannot draw to {path}: there is no folder {path.absolute().parent}")


def _rates(axis: Any, depths: Sequence[int], rows: Sequence[dict[str, Any]]) -> None:
    axis.plot(depths, [row["prefill_tok_s"] for row in rows], "s-", label="reading")
    axis.plot(depths, [row["decode_tok_s"] for row in rows], "o-", label="decoding")
    axis.set_yscale("log")
    _depth_axis(axis, depths, "tokens a second")


def _memory(axis: Any, depths: Sequence[int], rows: Sequence[dict[str, Any]], weights: int) -> None:
    axis.plot(depths, [row["peak_bytes"] / _MIB for row in rows], "^-", label="peak resident")
    axis.plot(depths, [row["cache_bytes"] / _MIB for row in rows], "o-", label="cache")
    axis.axhline(weights / _MIB, color="grey", linestyle="--", label="weights")
    axis.set_yscale("log")
    _depth_axis(axis, depths, "MiB")


def _ops(axis: Any, depths: Sequence[int], split: Sequence[dict[str, float]]) -> None:
    names = sorted({name for ops in split for name in ops}, key=lambda name: -max(ops.get(name, 0.0) for ops in split))
    bands = [[ops.get(name, 0.0) for ops in split] for name in names[:_SHOWN_OPS]]
    labels = names[:_SHOWN_OPS]
    if len(names) > _SHOWN_OPS:
        bands.append([sum(ops.get(name, 0.0) for name in names[_SHOWN_OPS:]) for ops in split])
        labels.append("the rest")
    axis.stackplot(depths, bands, labels=labels)
    _depth_axis(axis, depths, "ms a decoded token")


def _depth_axis(axis: Any, depths: Sequence[int], label: str) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(depths, [_short(depth) for depth in depths])
    axis.set_xlabel("depth, tokens")
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def _short(count: int) -> str:
    for size, letter in ((2**20, "M"), (2**10, "k")):
        if count >= size and count % size == 0:
            return f"{count // size}{letter}"
    return f"{count:,}"

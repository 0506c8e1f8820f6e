"""How much of the indexer's work exact bounds could save on real text: `python bench/index_pruning.py`.

It measures what pruning could reach at best, before any kernel is written. The shipped model reads source code; for
queries near its end every bound below is computed for every block of keys, and a block counts as skipped when its bound
is below the final k-th score, which a real kernel would know only at the end. Bounds are on the whole score: sum over
heads of max(w, 0) * relu(upper bound of q . k).

    interval   per channel the least and greatest of the block's keys, in the keys' own basis and in the one before the
               Hadamard rotation (which rotates queries alike and changes no product)
    ball       the block's mean and the largest distance from it
    half       for each key the exact product over the first half of the channels, in the basis of the keys' principal
               components, plus Cauchy-Schwarz for the rest
    coarse     for each key the exact product with 2-bit numbers, plus Cauchy-Schwarz for what they leave out
    oracle     no bound of blocks can skip more: blocks without any chosen key
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import foveal
from foveal.model.indexer import Indexer

PAGE = 64
CHUNK = 512


@dataclass
class Layer:
    """What one CSA layer's indexer was asked: all keys, and every eighth token's query, weights and visible count."""

    keys: Tensor = field(default_factory=lambda: torch.empty(0))
    queries: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    visible: list[Tensor] = field(default_factory=list)


def source_tokens(engine: foveal.Engine, folder: Path, count: int) -> list[int]:
    """The first `count` tokens of Python files under `folder`, whole files in a random but fixed order."""
    files = sorted(path for path in folder.rglob("*.py") if 500 < path.stat().st_size < 60_000)
    random.Random(3).shuffle(files)
    tokens: list[int] = []
    for path in files:
        tokens += engine.tokenizer.encode(f"# {path.name}\n{path.read_text(errors='replace')}")
        if len(tokens) >= count:
            return tokens[:count]
    raise SystemExit(f"{folder} has only {len(tokens)} tokens of Python; give another folder or fewer --tokens")


def record(engine: foveal.Engine, tokens: list[int]) -> list[Layer]:
    """Read the tokens; what the indexers see, by layer."""
    layers: dict[int, Layer] = {}
    choose = Indexer.choose

    def listening(self: Indexer, queries: Tensor, weights: Tensor, keys: Tensor, visible: Tensor) -> Tensor | None:
        layer = layers.setdefault(id(self), Layer())
        layer.keys = keys
        layer.queries.append(queries[::8].clone())
        layer.weights.append(weights[::8].clone())
        layer.visible.append(visible[::8].clone())
        return choose(self, queries, weights, keys, visible)

    Indexer.choose = listening  # type: ignore[method-assign]
    try:
        with engine.new_sequence() as sequence, torch.no_grad():
            engine.prefill(
                sequence, tokens, progress=lambda done, total: print(f"\r{done}/{total}", end="", file=sys.stderr)
            )
            print(file=sys.stderr)
            return [
                Layer(layer.keys.float().clone(), layer.queries, layer.weights, layer.visible)
                for layer in layers.values()
            ]
    finally:
        Indexer.choose = choose  # type: ignore[method-assign]


def hadamard(width: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < width:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / width**0.5


def combine(weights: Tensor, products: Tensor) -> Tensor:
    """Bounds of products [n, h, s] -> bounds of scores [n, s]."""
    return torch.einsum("nh,nhs->ns", weights.clamp_min(0), products.clamp_min(0))


def intervals(query: Tensor, weights: Tensor, keys: Tensor, block: int) -> Tensor:
    blocks = keys.unflatten(0, (-1, block))
    low, high = blocks.amin(1), blocks.amax(1)
    upper = torch.einsum("nhc,sc->nhs", query.clamp_min(0), high) + torch.einsum("nhc,sc->nhs", query.clamp_max(0), low)
    return combine(weights, upper)


def balls(query: Tensor, weights: Tensor, keys: Tensor, block: int) -> Tensor:
    blocks = keys.unflatten(0, (-1, block))
    centre = blocks.mean(1)
    radius = (blocks - centre.unsqueeze(1)).norm(dim=2).amax(1)
    return combine(weights, torch.einsum("nhc,sc->nhs", query, centre) + query.norm(dim=2).unsqueeze(2) * radius)


def halves(query: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    basis = torch.linalg.eigh(keys.T @ keys).eigenvectors.flip(1)
    query, keys, half = query @ basis, keys @ basis, keys.shape[1] // 2
    first = torch.einsum("nhc,sc->nhs", query[..., :half], keys[:, :half])
    return combine(weights, first + query[..., half:].norm(dim=2).unsqueeze(2) * keys[:, half:].norm(dim=1))


def coarse(query: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    # The best four levels for a normal distribution (Max, 1960), in units of each key's deviation.
    unit = keys.square().mean(1, keepdim=True).sqrt()
    levels = torch.where(keys.abs() < 0.9816 * unit, 0.4528, 1.510) * unit * keys.sign()
    rest = (keys - levels).norm(dim=1)
    return combine(weights, torch.einsum("nhc,sc->nhs", query, levels) + query.norm(dim=2).unsqueeze(2) * rest)


def bounds(query: Tensor, weights: Tensor, keys: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, bounds [n, blocks])."""
    turn = hadamard(keys.shape[1])
    for block in (PAGE, 16, 4):
        yield f"interval, {block} keys", intervals(query, weights, keys, block)
        yield f"interval, {block} keys, before Hadamard", intervals(query @ turn, weights, keys @ turn, block)
        yield f"ball, {block} keys", balls(query, weights, keys, block)
    yield "half, each key", halves(query, weights, keys)
    yield "coarse, each key", coarse(query, weights, keys)


def report(number: int, layer: Layer, best: list[int], queries: int) -> None:
    query, weights, visible = torch.cat(layer.queries), torch.cat(layer.weights), torch.cat(layer.visible)
    keys = layer.keys[: int(0.9 * len(layer.keys)) // PAGE * PAGE]
    late = (visible >= len(keys)).nonzero().flatten()
    picked = late[torch.randperm(len(late), generator=torch.Generator().manual_seed(0))[:queries]]
    query, weights = query[picked], weights[picked]
    scores = torch.einsum("nh,nhs->ns", weights, torch.einsum("nhc,sc->nhs", query, keys).relu())
    negative = (weights < 0).float().mean().item()
    print(
        f"\nindexer {number}: {len(keys)} keys of {keys.shape[1]} channels, {len(query)} queries of "
        f"{query.shape[1]} heads, {negative:.0%} of head weights negative"
    )
    made = list(bounds(query, weights, keys))
    for k in best:
        threshold = scores.topk(k, dim=1).values[:, -1:]
        print(f"  k {k}: k-th score / median score {(threshold / scores.median(1, keepdim=True).values).median():.2f}")
        for block in (PAGE, 16, 4):
            hit = (scores >= threshold).unflatten(1, (-1, block)).any(2).float().mean().item()
            print(f"    {f'oracle, {block} keys':42s} skips {1 - hit:6.1%}")
        for name, upper in made:
            skipped = (upper < threshold).float().mean().item()
            print(f"    {name:42s} skips {skipped:6.1%}   median bound / k-th score {(upper / threshold).median():.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--source", type=Path, default=Path(torch.__file__).parents[1], help="folder of Python files")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--k", type=int, nargs="+", default=[512, 32], help="32 of 16k keys are what 512 are of 262k")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    engine = foveal.Engine.open(args.model, threads=args.threads, backend="reference")
    layers = record(engine, source_tokens(engine, args.source, args.tokens))
    for number, layer in enumerate(layers):
        report(number, layer, args.k, args.queries)


if __name__ == "__main__":
    main()

"""A network cut into stages of layers, each with pages of its own, gives the bits of the whole one."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from pathlib import Path

import numpy as np
import pytest
from helpers.networks import random_network, random_tokens, tiny_config

from foveal.backends.reference import ReferenceRunner, Stage
from foveal.cache import CacheFormat, CacheLayout, PagePool, Segment, Sequence, Tail
from foveal.checkpoint.identity import Fingerprint
from foveal.formats import Array
from foveal.store import loading, saving
from foveal.store.store import Store

CONFIG = tiny_config(num_nextn_predict_layers=0)
FORMATS = (CacheFormat("fp32", "fp32"), CacheFormat("bf16", "bf16"))


class Node:
    """What a machine of a cluster has: a stage, and its own pages and sequence."""

    def __init__(self, stage: Stage, format: CacheFormat) -> None:
        self.stage = stage
        self.pool = PagePool(CacheLayout(stage.config, format, layers=stage.layers))
        self.fingerprint = Fingerprint.of(stage.config, weights="w", tokenizer="t", numbers=stage.arithmetic)
        self.sequence = Sequence(self.pool, dtype=np.float32)

    def __call__(self, streams: Array, tokens: Array) -> Array:
        return self.stage(streams, tokens, [Segment(self.sequence, len(tokens))])


def run(nodes: Seq[Node], tokens: Array) -> Array:
    """Logits of all tokens, which pass through one node after the other."""
    streams = nodes[0].stage.embed(tokens)
    for node in nodes:
        streams = node(streams, tokens)
    return nodes[-1].stage.logits(streams)


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_two_stages_give_the_bits_of_one(cut: int, format: CacheFormat) -> None:
    model = random_network(CONFIG, seed=cut)
    whole = ReferenceRunner(model)
    nodes = [Node(Stage(model, range(cut)), format), Node(Stage(model, range(cut, 4)), format)]
    layout = CacheLayout(CONFIG, format)
    one = Sequence(PagePool(layout), dtype=np.float32)
    tokens = random_tokens(CONFIG, 300, 5).numpy()
    for part in (tokens[:256], tokens[256:299], tokens[299:]):
        expected = whole.logits(whole(part, [Segment(one, len(part))]))
        assert np.array_equal(run(nodes, part), expected)
    assert sum(node.pool.layout.page_bytes for node in nodes) == layout.page_bytes
    for node in nodes:
        for layer, part_of in node.pool.layout.regions:
            assert np.array_equal(node.sequence.entries(layer, part_of), one.entries(layer, part_of))
        assert list(node.sequence.tail.windows) == list(node.stage.layers)
        tail = {name: one.tail.tensors()[name] for name in node.sequence.tail.tensors()}
        assert all(np.array_equal(array, tail[name]) for name, array in node.sequence.tail.tensors().items())
        node.pool.check_integrity([node.sequence.pages])


def test_a_stage_s_pages_are_named_after_it() -> None:
    model = random_network(CONFIG, seed=1)
    stages = [Stage(model, layers) for layers in (range(0, 2), range(2, 4))]
    assert len({stage.arithmetic for stage in stages} | {ReferenceRunner(model).arithmetic}) == 3
    first, second = (Fingerprint.of(CONFIG, weights="w", tokenizer="t", numbers=s.arithmetic) for s in stages)
    assert first.differing(second) == ("number format",)
    with pytest.raises(ValueError, match="no range"):
        Stage(model, range(3, 5))
    with pytest.raises(ValueError, match="no range"):
        CacheLayout(CONFIG, layers=range(0, 4, 2))


def test_a_stage_is_saved_forked_and_loaded_like_any_other(tmp_path: Path) -> None:
    """The store knows nothing of stages: it is given a layout and a fingerprint."""
    model = random_network(CONFIG, seed=2)
    tokens = random_tokens(CONFIG, 400, 5).numpy()
    nodes = [Node(Stage(model, range(2)), FORMATS[0]), Node(Stage(model, range(2, 4)), FORMATS[0])]
    run(nodes, tokens[:300])
    with Store(tmp_path / "store", durability="off") as store:
        for number, node in enumerate(nodes):
            saving.save(store, f"stage-{number}", node.sequence, node.fingerprint)
        again = [Node(node.stage, FORMATS[0]) for node in nodes]
        for number, node in enumerate(again):
            context = store.context(f"stage-{number}")
            runner = Restoring(node)
            node.sequence = loading.load(store, context, node.fingerprint, runner, chunk=256).sequence
    assert np.array_equal(run(again, tokens[300:]), run(nodes, tokens[300:]))
    tail = nodes[0].sequence.tail
    assert np.array_equal(
        Tail.from_tensors(nodes[0].pool.layout, tail.position, tail.tensors()).windows[1], tail.windows[1]
    )


class Restoring:
    """What the store asks of whoever loads: no token is run here."""

    grain = 256

    def __init__(self, node: Node) -> None:
        self.pool = node.pool

    def new_sequence(self, *, tail_every: int | None = None) -> Sequence:
        return Sequence(self.pool, dtype=np.float32, tail_every=tail_every)

    def restore_sequence(self, image: object, *, tail_every: int | None = None) -> Sequence:
        return Sequence.restore(self.pool, image, dtype=np.float32, tail_every=tail_every)  # type: ignore[arg-type]

    def recompute(self, sequence: Sequence, tokens: Seq[int]) -> int:
        raise AssertionError("everything was there")

    replay = recompute

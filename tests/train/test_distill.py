"""Teaching packed entries: what is read, what learns, and that a run goes on as if it had never stopped."""

from __future__ import annotations

import csv
import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from convert_support import llama_config, one_direction, save_folder, some_text, transformers_source
from helpers.networks import logits
from safetensors.torch import load_file

from foveal.checkpoint import open_checkpoint
from foveal.cli.main import app
from foveal.config import Numerics
from foveal.convert import Llama
from foveal.convert.build import converted_weights
from foveal.convert.errors import ConvertError
from foveal.convert.fade import fade_table, fit_fade
from foveal.convert.fitting import Moments, fit_moments
from foveal.convert.hugging_face import read_folder
from foveal.convert.layout import RAW_WINDOW, Layout
from foveal.convert.learned import load_slots, save_slots
from foveal.convert.material import documents
from foveal.convert.packed import Slots
from foveal.convert.tokens import converted_text
from foveal.model import Transformer
from foveal.model.weights import load_parameters
from foveal.train.distill.finding import find_heads, head_scores, masked_loss, worth
from foveal.train.distill.layerwise import layer_errors
from foveal.train.distill.mean import main, mean
from foveal.train.distill.opening import Opened
from foveal.train.distill.passages import notes, story
from foveal.train.distill.rows import KINDS, Marks, RowMaker
from foveal.train.distill.run import CURVE, SNAPSHOT, Distillation, Report
from foveal.train.distill.settings import DistillConfig, StageConfig
from foveal.train.distill.student import Student
from foveal.train.settings import SettingsError
from foveal.train.snapshot import SnapshotError
from foveal.train.trainer import Progress

pytestmark = pytest.mark.slow

HEADS = {1: (0, 4)}
Taught = tuple[Llama, Moments, RowMaker]


def student_of(network: Llama, moments: Moments, heads: Mapping[int, Sequence[int]]) -> Student:
    """A student whose constant direction is the first moment's strongest."""
    constants = torch.linalg.eigh(moments.attention).eigenvectors[:, :, -1] / network.shape.hidden_size**0.5
    return Student(network, moments, constants, heads)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    """A source with its moments, and rows for it."""
    folder = tmp_path_factory.mktemp("distill")
    theirs = transformers_source(llama_config(rope_theta=100000.0, head_dim=16, max_position_embeddings=4096), 0)
    one_direction(theirs, 0)
    source = read_folder(save_folder(theirs, folder / "model"))
    text = converted_text(source)
    texts = documents([some_text(folder / "text")], held_out=False)
    rows = torch.randint(3, 300, (4, 64), generator=torch.Generator().manual_seed(1))
    network = Llama(source)
    maker = RowMaker(text.tokenizer, texts, text.begin, Marks("<|im_start|>", "<|im_end|>"), length=2500, seed=3)
    return network, fit_moments(network, rows, folder, "test"), maker


def test_rows_follow_from_the_step(taught: Taught) -> None:
    maker = taught[2]
    rows = [maker.row(step) for step in range(60)]
    assert {row.kind for row in rows} == {"repeat", "list", "questions", "notes", "text"}
    for step, row in enumerate(rows):
        again = maker.row(step)
        assert torch.equal(again.tokens, row.tokens) and torch.equal(again.places, row.places)
        assert len(row.places) > 0 and int(row.places.max()) < len(row.tokens) - 1 and len(row.tokens) <= 2500
        assert torch.equal(row.places, row.places.unique())


def test_short_rows_leave_out_what_does_not_fit(taught: Taught) -> None:
    long = taught[2]
    maker = RowMaker(long.tokenizer, long.texts, long.begin, long.marks, length=512, seed=3)
    assert all(len(row.tokens) <= 512 and int(row.places[-1]) >= 192 for row in map(maker.row, range(20)))


def test_what_is_taught_of_a_repeat_stands_before(taught: Taught) -> None:
    maker = taught[2]
    row = next(row for row in map(maker.row, range(60)) if row.kind == "repeat")
    text = " ".join(map(str, row.tokens.tolist()))
    taught_tokens = " ".join(map(str, row.tokens[row.places + 1].tolist()))
    assert text.count(taught_tokens) >= 2


def test_without_retrieval_heads_it_is_the_converted_network(taught: Taught) -> None:
    network, moments, _ = taught
    layout = Layout.of(network.shape)
    config = layout.config(RAW_WINDOW)
    model = Transformer(config, numerics=Numerics.none())
    source = network.source
    load_parameters(model, dict(converted_weights(source, moments.attention, layout, config)))
    tokens = torch.randint(3, 300, (300,), generator=torch.Generator().manual_seed(2))
    ours = student_of(network, moments, {}).eval().logits(tokens, torch.arange(300))
    theirs = logits(model.eval().requires_grad_(False), tokens)
    assert (ours - theirs).abs().max() < 1e-2 * theirs.std()


def test_only_slots_learn(taught: Taught) -> None:
    network, moments, _ = taught
    names = student_of(network, moments, HEADS).learned()
    kinds = ("key", "query", "value", "output", "offset", "bias", "sink")
    assert sorted(names) == sorted(f"layers.1.slots.{kind}" for kind in kinds)


def test_slots_see_only_entries_that_are_there(taught: Taught) -> None:
    """A token does not depend on what comes after it, and does on what left the raw window long ago."""
    network, moments, _ = taught
    student = student_of(network, moments, HEADS).eval()
    tokens = torch.randint(3, 300, (700,), generator=torch.Generator().manual_seed(2))
    place = torch.tensor([600])
    with torch.no_grad():
        own = student.logits(tokens, place)
        later = student.logits(torch.cat([tokens[:601], tokens[601:].flip(0)]), place)
        changed = tokens.clone()
        changed[250:254] = 7
        earlier = student.logits(changed, place)
    assert torch.allclose(own, later, atol=1e-4) and not torch.allclose(own, earlier, atol=1e-3)


def config_of(out: Path, source: Path | str = "tiny", **changes: Any) -> DistillConfig:
    """Two steps of each kind of stage."""
    stages = (StageConfig("layers", 2, 2500, 1e-3), StageConfig("network", 2, 2500, 1e-3))
    config = DistillConfig("distill", str(out), str(source), stages, {"1": (0, 4)}, log_every=1, precision="fp32")
    return dataclasses.replace(config, **changes)


def begun(taught: Taught, config: DistillConfig, report: Report | None = None) -> Distillation:
    """A run of that source."""
    network, moments, maker = taught
    student = student_of(network, moments, config.retrieving)
    text = converted_text(network.source)
    return Distillation(config, Opened(network.source, text, maker.texts, student, config.retrieving), report)


def stop_after(run: Distillation, step: int, progress: Progress) -> None:
    if progress.position.step == step:
        run.stop()


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(taught: Taught, tmp_path: Path) -> None:
    whole = begun(taught, config_of(tmp_path / "whole"))
    whole.train()
    for stop_at in (1, 2, 3):
        run = begun(taught, config_of(tmp_path / "parts"))
        run.report = lambda progress, run=run, stop_at=stop_at: (
            run.stop() if progress.position.step == stop_at else None
        )
        assert run.train().step == stop_at
    last = begun(taught, config_of(tmp_path / "parts"))
    assert last.position.step == 3 and last.train().step == 4 and last.progress() == 1
    ours, theirs = (load_file(tmp_path / name / SNAPSHOT) for name in ("parts", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    rows = [list(csv.DictReader((tmp_path / name / CURVE).read_text().splitlines())) for name in ("parts", "whole")]
    kinds = ("step", "stage", *KINDS)
    assert [[row[kind] for kind in kinds] for row in rows[0]] == [[row[kind] for kind in kinds] for row in rows[1]]
    assert [row["step"] for row in rows[0]] == ["1", "2", "3", "4"]


def test_a_snapshot_of_other_heads_is_not_gone_on_with(taught: Taught, tmp_path: Path) -> None:
    run = begun(taught, config_of(tmp_path))
    run.save()
    with pytest.raises(SnapshotError, match=r"was trained with text=\[\], and now it is \['x'\]"):
        begun(taught, config_of(tmp_path, text=("x",)))
    with pytest.raises(SnapshotError, match="was trained with heads="):
        begun(taught, config_of(tmp_path, heads={"1": (2,)}))
    (tmp_path / SNAPSHOT).write_bytes(b"damaged")
    with pytest.raises(SnapshotError, match="cannot go on from"):
        begun(taught, config_of(tmp_path))


def test_all_that_belongs_to_slots_learns(taught: Taught, tmp_path: Path) -> None:
    network, moments, _ = taught
    run = begun(taught, config_of(tmp_path))
    run.train()
    start = student_of(network, moments, HEADS)
    moved = [name for name, p in run.student.learned().items() if not torch.equal(p, start.learned()[name])]
    assert len(moved) == 7


def test_a_run_begins_with_what_was_learned_before(taught: Taught, tmp_path: Path) -> None:
    stages = (StageConfig("layers", 2, 2500, 0.03), StageConfig("network", 2, 2500, 0.03))
    run = begun(taught, config_of(tmp_path / "first", stages=stages))
    run.train()
    run.export(tmp_path / "slots.safetensors")
    network, moments, maker = taught
    before = load_slots(tmp_path / "slots.safetensors", network.source.shape)
    student = student_of(network, moments, HEADS)
    student.take(before)
    after = student.packed()
    for layer, slots in before.items():
        for name, value in dataclasses.asdict(slots).items():
            same = getattr(after[layer], name)
            assert value == same if name == "heads" else torch.equal(value, same), name
    row = maker.row(3)
    exact, rounded = (one.eval().logits(row.tokens, row.places) for one in (run.student, student))
    derived = student_of(network, moments, HEADS).eval().logits(row.tokens, row.places)
    assert (exact - rounded).abs().max() < (exact - derived).abs().max() / 4


def test_from_a_file_of_settings_to_a_model(tmp_path: Path) -> None:
    """The commands, as one would type them."""
    theirs = transformers_source(llama_config(hidden_size=84, max_position_embeddings=2048), 0)
    folder, text = save_folder(theirs, tmp_path / "source"), some_text(tmp_path / "text")
    settings = {
        "kind": "distill", "out": str(tmp_path / "run"), "source": str(folder), "heads": {1: [0, 4]},
        "text": [str(text)], "stages": [{"teach": "layers", "steps": 1, "length": 1024, "rate": 1e-3}],
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    slots, model = tmp_path / "slots.safetensors", tmp_path / "model"
    more = ["--set", f"start_from={slots}", "--set", f"out={tmp_path / 'more'}"]
    for line in (
        ["train", tmp_path / "run.yaml", "--json"],
        ["train", tmp_path / "run.yaml", "--export", slots],
        ["train", tmp_path / "run.yaml", *more],
        ["train", tmp_path / "run.yaml", *more, "--export", slots],
        ["convert", folder, "--text", text, "--tokens", "2k", "--rows", "0", "--slots", slots, "--out", model],
    ):
        assert CliRunner().invoke(app, [str(part) for part in line]).exit_code == 0
    assert open_checkpoint(model).config.compress_ratios == (128, 4)
    wrong = (("heads={1: [2]}", "leaves out some"), (f"start_from={text}", "no file of packed entries"))
    for changes, message in wrong:
        line = ["train", tmp_path / "run.yaml", *more, "--set", f"out={tmp_path / 'other'}", "--set", changes]
        done = CliRunner().invoke(app, [str(part) for part in line])
        assert done.exit_code == 1 and message in done.output, done.output


def test_heads_that_join_what_was_learned_see_what_they_saw_in_the_source(taught: Taught) -> None:
    """Head 1 has the key group of head 0: with the keys that were learned for that one, turned at random, its logits
    and its values are those of the source. What head 0 had learned stays, and a layer without slots begins anew."""
    network, moments, _ = taught
    learned = student_of(network, moments, {1: (0,)}).packed()[1]
    c, dice = network.shape.head_dim, torch.Generator().manual_seed(6)
    turns = torch.randn(4, c, c, generator=dice)
    values = torch.randn(4, c, c, generator=dice)
    learned = dataclasses.replace(learned, key=turns @ learned.key, value=values @ learned.value)
    student = student_of(network, moments, {0: (2,), 1: (0, 1)})
    student.take({1: learned})
    found, own = student.packed()[1], network.layers[1]
    assert student.packed()[0].heads == (2,) and found.heads == (0, 1)
    for name in ("key", "value"):
        assert torch.equal(getattr(found, name), getattr(learned, name))
    for name in ("query", "output", "offset", "sink"):
        assert torch.equal(getattr(found, name)[:, 0], getattr(learned, name)[:, 0])
    for slot in range(4):
        logits = found.query[slot, 1].T @ found.key[slot]
        wanted = own.q[c : 2 * c].T @ own.k[:c]
        assert (logits - wanted).norm() < 1e-3 * wanted.norm()
        moved, all_of_it = found.output[slot, 1] @ found.value[slot], own.o[:, c : 2 * c] @ own.v[:c]
        assert (moved - 0.5 * all_of_it).norm() < 1e-3 * all_of_it.norm()


def test_words_of_a_passage_are_its_own() -> None:
    """Every name in braces is filled in, in sentences and questions alike, and what answers a question stands there."""
    for number in range(300):
        draw = random.Random(number)
        for facts in (story(draw), notes(draw)):
            text = " ".join(sentence for sentence, _ in facts)
            assert "{" not in text and "  " not in text
            for _, questions in facts:
                for question, beginning, value in questions:
                    assert not {"{", "}"} & {*question, *beginning, *value} and question[-1] in "?"
                    assert all(word in text for word in value.split()), (text, value)


def test_nothing_is_exported_of_a_run_that_learned_nothing(taught: Taught, tmp_path: Path) -> None:
    run = begun(taught, config_of(tmp_path / "run"))
    with pytest.raises(SnapshotError, match="has no snapshot of this run"):
        run.export(tmp_path / "slots.safetensors")
    assert not (tmp_path / "slots.safetensors").exists()


def test_rows_need_room_and_text(taught: Taught) -> None:
    maker = taught[2]
    for texts, length, message in ((maker.texts, 192, "need 512"), (["a few words"], 1024, "name more")):
        with pytest.raises(SettingsError, match=message):
            RowMaker(maker.tokenizer, texts, maker.begin, maker.marks, length=length, seed=3)


def test_the_mean_of_runs(tmp_path: Path) -> None:
    theirs = transformers_source(llama_config(hidden_size=84, max_position_embeddings=2048), 0)
    folder = save_folder(theirs, tmp_path / "source")
    shape, dice = read_folder(folder).shape, torch.Generator().manual_seed(5)

    def some(heads: tuple[int, ...]) -> Slots:
        m, c, d = len(heads), shape.head_dim, shape.hidden_size
        sizes = {"key": (4, c, d), "value": (4, c, d), "query": (4, m, c, d), "output": (4, m, d, c)}
        sizes |= {"offset": (4, m, d), "sink": (4, m), "constant": (d,)}
        return Slots(heads, **{name: torch.randn(size, generator=dice) for name, size in sizes.items()})

    one, two, other = some((0, 4)), some((0, 4)), some((0, 3))
    files = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for file, slots in zip(files, (one, two), strict=True):
        save_slots(file, {1: slots}, shape, "a test")
    main([str(folder), str(tmp_path / "mean"), *map(str, files)])
    found = load_slots(tmp_path / "mean", shape)[1]
    for name in ("key", "query", "output", "offset", "sink"):
        expected = (getattr(one, name) + getattr(two, name)) / 2
        assert torch.allclose(getattr(found, name), expected, atol=0.1), "to what eight bits hold"
    assert torch.equal(found.sink, (one.sink + two.sink) / 2)
    with pytest.raises(ConvertError, match="different heads"):
        mean([{1: one}, {1: other}])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"stages": ()}, "'stages' is empty"),
    ({"find": 0}, "must be 1 or more"),
    ({"heads": {"one": (1,)}}, "must map layers to lists"),
    ({"stages": (StageConfig("everything", 1, 1024, 1e-3),)}, "'layers' or 'network'"),
    ({"stages": (StageConfig("layers", 0, 1024, 1e-3),)}, "steps >= 1"),
    ({"device": "abacus"}, "'device' is 'abacus'"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_settings_that_mean_nothing(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        config_of(tmp_path, **changes)


def test_layer_by_layer_slots_come_nearer_to_what_the_source_finds(taught: Taught, tmp_path: Path) -> None:
    run = begun(taught, config_of(tmp_path, stages=(StageConfig("layers", 30, 2500, 2e-3),)))
    row = taught[2].row(100)

    def error() -> float:
        found = float(layer_errors(run.student, row, 0.0))
        run.optimizer.zero_grad()
        return found

    before = error()
    run.train()
    assert error() < 0.8 * before


def test_what_sight_beyond_the_window_is_worth_is_shared_out(taught: Taught) -> None:
    """The shares add up to what the loss loses when nothing is seen beyond the window; with everything seen it is the
    source's loss. Heads whose output is nothing have no share, and so the one that is left is found."""
    network, long = Llama(taught[0].source), taught[2]
    maker = RowMaker(long.tokenizer, long.texts, long.begin, long.marks, length=1200, seed=4)
    row = next(row for row in map(maker.row, range(60)) if row.kind == "list")
    ones = torch.ones(network.shape.layers, network.shape.heads)
    with torch.no_grad():
        nothing, all_of_it = (float(masked_loss(network, row, value * ones)) for value in (0.0, 1.0))
        hidden = network.hidden(row.tokens[None])[0, row.places]
        own = float(torch.nn.functional.cross_entropy(hidden @ network.head.T, row.tokens[row.places + 1]))
    shares = worth(network, row)
    assert abs(all_of_it - own) < 1e-5 and abs(nothing - all_of_it) > 1e-4
    assert abs(float(shares.sum()) - (nothing - all_of_it)) < 0.05 * abs(nothing - all_of_it)
    c = network.shape.head_dim
    for index, layer in enumerate(network.layers):
        kept = layer.o[:, 2 * c : 3 * c].clone() if index == 1 else 0.0
        layer.o.zero_()
        layer.o[:, 2 * c : 3 * c] = kept
    if not head_scores(network, maker).any():  # what it sees makes things worse: turn it round
        network.layers[1].o.neg_()
    scores = head_scores(network, maker)
    assert scores[1, 2] > 0 and int((scores != 0).sum()) == 1
    assert find_heads(network, maker, 1, 1) == {1: (2,)}


def test_the_fade_is_low_inside_the_window_and_flat_beyond() -> None:
    pairs = torch.tensor([*range(6, 128, 4), 127])
    frequencies = 1e5 ** (-pairs.double() / 128)
    table = fade_table(fit_fade(frequencies, 8192), frequencies, 4096)
    assert table[:100].max() < -3.3 and table[:127].max() < -2
    assert table[150] > -1.6 and table[200] > -0.7 and table[250:400].abs().max() < 0.5
    assert table[400:].abs().max() < 1.6 and table[400:].square().mean().sqrt() < 0.5

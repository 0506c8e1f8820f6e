"""What a run, a store or a checkpoint cannot be is refused in words, before it costs anything."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.stores import TINY, TOKENIZER, write_lines

from foveal.config import ConfigError
from foveal.train import launch
from foveal.train.data import Composer, DataError, TokenStore, TokenTable
from foveal.train.settings import RunConfig, SettingsError
from foveal.train.storing import tokenize
from foveal.train.tasks import Mixture, TaskMix


def settings(folder: Path, **changes: object) -> dict[str, Any]:
    """Of a small run on a store of lines in `folder`."""
    values: dict[str, Any] = dict(
        out=str(folder / "run"), train=str(folder / "train"), tokenizer=str(TOKENIZER), tokens=64 * 4, log_every=1,
        start="random", precision="fp32", device="cpu", model=TINY, stages=[{"length": 64}],
    )  # fmt: skip
    return values | changes


def run_of(folder: Path, **changes: object) -> RunConfig:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings(folder, **changes)))
    return RunConfig.from_yaml(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_lines(tmp_path, 300)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": 0}, "'tokens' is 0; a budget must be more than 0"),
        ({"tokens": -5}, "'tokens' is -5"),
        ({"minutes": 0}, "'minutes' is 0.0; a budget must be more than 0"),
        ({"minutes": float("nan")}, "'minutes' is nan"),
        ({"minutes": float("inf")}, "'minutes' is inf"),
        ({"keep": 0}, "'keep' is 0; it must be 1 or more"),
        ({"keep": -1}, "'keep' is -1"),
        ({"log_every": 0}, "'log_every' is 0"),
        ({"save_steps": 0}, "'save_steps' is 0"),
        ({"micro": 0}, "'micro' is 0"),
        ({"threads": 0}, "'threads' is 0"),
        ({"workers": -1}, "'workers' is -1"),
        ({"seed": -1}, "'seed' is -1"),
        ({"save_minutes": float("nan")}, "'save_minutes' is nan"),
        ({"heldout_sequences": 0}, "'heldout_sequences' is 0"),
        ({"stages": [{"length": 64, "index_topk": 0}]}, "'stages.0.index_topk' is 0"),
        ({"stages": [{"length": 64, "lr": -1}]}, "'stages.0.lr' is -1"),
        ({"stages": [{"length": 64, "share": float("nan")}]}, "share > 0"),
        ({"data": {"chunk": [400, 64]}}, r"'data.chunk' is \[400, 64\]"),
        ({"data": {"span": [0, 64]}}, r"'data.span' is \[0, 64\]"),
        ({"data": {"blank_share": 1.5}}, "'data.blank_share' is 1.5"),
        ({"data": {"blanks": -1}}, "'data.blanks' is -1"),
    ],
)
def test_settings_out_of_range_are_refused(folder: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises((SettingsError, DataError), match=words):
        run_of(folder, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": "/nope"}, "no tokenizer at /nope"),
        ({"model": TINY | {"vocab_size": 100}}, "'model.vocab_size' is 100; the tokenizer has 4,096"),
        ({"model": TINY | {"compress_ratios": 5}}, "'model.compress_ratios' is 5; it must be a list"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(folder: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises((SettingsError, DataError, ConfigError), match=words):
        launch.build(run_of(folder, **changes))
    with pytest.raises((SettingsError, DataError, ConfigError), match=words):
        launch.export_start(run_of(folder, **changes), folder / "model")


def test_a_tokenizer_that_is_none_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="tokenizer.json"):
        launch.build(run_of(folder, tokenizer=str(folder / "tokenizer.json")))


# ---------------------------------------------------------------------- stores


def store_of(folder: Path, *texts: str, tokenizer: Path = TOKENIZER) -> Path:
    """A store of files with these texts."""
    (folder / "src").mkdir()
    for number, text in enumerate(texts):
        (folder / "src" / f"{number:03d}.py").write_text(text)
    tokenize([folder / "src"], folder / "code", tokenizer)
    return folder / "code"


TEXT = "\n".join(f"value_{i} = compute(first_{i}, {i})" for i in range(200))


@pytest.mark.parametrize(
    ("suffix", "cut"),
    [(".bin", -1), (".bin", -2), (".bin", 0), (".idx.npy", 100), (".idx.npy", 0), (".json", 40), (".json", 0)],
)
def test_a_damaged_store_is_refused_and_made_again(tmp_path: Path, suffix: str, cut: int) -> None:
    base = store_of(tmp_path, TEXT)
    whole = {path.name: path.read_bytes() for path in tmp_path.glob("code.*")}
    file = base.with_name(base.name + suffix)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"code.*; make it again with foveal tokenize --force"):
        TokenStore(base)
    assert not tokenize([tmp_path / "src"], base, TOKENIZER).kept
    assert whole == {path.name: path.read_bytes() for path in tmp_path.glob("code.*")}
    assert tokenize([tmp_path / "src"], base, TOKENIZER).kept


def test_a_store_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    """One of the same size: two merges have changed places."""
    data = json.loads(TOKENIZER.read_text(encoding="utf-8"))
    merges = data["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(data), encoding="utf-8")
    base = store_of(tmp_path, TEXT, tokenizer=other)
    run = run_of(tmp_path, train=str(base))
    with pytest.raises(DataError, match="code was made with another tokenizer"):
        launch.build(run)
    assert launch.build(dataclasses.replace(run, tokenizer=str(other)))
    about = base.with_name("code.json")
    known = json.loads(about.read_text())
    del known["tokenizer"]  # as older versions wrote it
    about.write_text(json.dumps(known))
    assert launch.build(run)


def test_an_id_beyond_the_vocabulary_is_found_anywhere(tmp_path: Path) -> None:
    tokens = np.full(1 << 23, 300, dtype=np.uint16)
    tokens[-1] = 5000
    tokens.tofile(tmp_path / "train.bin")
    np.save(tmp_path / "train.idx.npy", np.array([0]))
    with pytest.raises(DataError, match="beyond the tokenizer's vocabulary"):
        Composer(TokenStore(tmp_path / "train"), TokenTable.from_tokenizer(TOKENIZER))


def test_a_store_of_small_files_does_not_fail_by_chance(tmp_path: Path) -> None:
    """Half of the files have 20 tokens, which 32 places in a row may well meet."""
    table = TokenTable.from_tokenizer(TOKENIZER)
    document = np.full(20, 300)
    document[9] = table.newline
    long = np.tile(document, 4)
    documents = [document] * 400 + [long]
    np.concatenate(documents).astype(np.uint16).tofile(tmp_path / "train.bin")
    np.save(tmp_path / "train.idx.npy", np.cumsum([0, *map(len, documents)]))
    composer = Composer(TokenStore(tmp_path / "train"), table, seed=1)
    for step in range(10):
        assert len(composer.sample(step, 256).tokens) == 256


def test_a_store_of_tiny_files_is_refused(tmp_path: Path) -> None:
    base = store_of(tmp_path, "x\n", "y\n")
    with pytest.raises(DataError, match=r"no document in token store .*code has 16 tokens"):
        launch.build(run_of(tmp_path, train=str(base)))


def test_tasks_without_text_end(tmp_path: Path) -> None:
    """One place in 80,000 begins a fragment of 16 tokens."""
    table = TokenTable.from_tokenizer(TOKENIZER)
    document = np.full(16, 300)
    documents = [document, *[np.array([300, table.newline])] * 40_000]
    np.concatenate(documents).astype(np.uint16).tofile(tmp_path / "train.bin")
    np.save(tmp_path / "train.idx.npy", np.cumsum([0, *map(len, documents)]))
    composer = Composer(TokenStore(tmp_path / "train"), table, seed=1)
    with pytest.raises(DataError, match=r"train has hardly any fragments .* or set tasks.share=0"):
        Mixture(composer, TaskMix(share=1.0), TOKENIZER, seed=1).sample(0, 512)

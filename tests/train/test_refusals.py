"""What a run, a store or a checkpoint cannot be is refused in words, before it costs anything."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.stores import TINY, TOKENIZER, write_lines

from foveal.config import ConfigError
from foveal.train import launch, snapshot
from foveal.train.data import Composer, DataError, TokenStore, TokenTable
from foveal.train.settings import RunConfig, SettingsError
from foveal.train.snapshot import Position, Snapshot, SnapshotError
from foveal.train.storing import tokenize
from foveal.train.tasks import Mixture, TaskMix

pytestmark = pytest.mark.slow


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
        ({"positions": {"offset": -200}}, r"positions\.offset"),
    ],
)
def test_settings_out_of_range_are_refused(folder: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises((SettingsError, DataError), match=words):
        run_of(folder, **changes)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("nothing: 1\n2: 3\nnull: 4\n")
    with pytest.raises(SettingsError, match="unknown setting"):
        RunConfig.from_yaml(tmp_path / "run.yaml")


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
    with pytest.raises(DataError, match=r"tokenizer\.json"):
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


# ---------------------------------------------------------------------- checkpoints


def test_another_run_does_not_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch.build(run_of(folder)).train()
    with pytest.raises(SnapshotError, match=r"step-00000004 was trained with seed=1, and now it is 2; choose another"):
        launch.build(run_of(folder, seed=2))
    (folder / "other").mkdir()
    other = str(write_lines(folder / "other", 200))
    with pytest.raises(SnapshotError, match=rf"train=.*3,000 tokens.*, and now it is {other} \(2,000 tokens"):
        launch.build(run_of(folder, train=other))
    data = json.loads(TOKENIZER.read_text(encoding="utf-8"))
    data["model"]["merges"][-2:] = reversed(data["model"]["merges"][-2:])
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(SnapshotError, match=r"tokenizer=.*, and now it is .*tokenizer.json"):
        launch.build(run_of(folder, tokenizer=str(folder / "tokenizer.json")))
    assert "changed" not in capsys.readouterr().err
    # The same text elsewhere is the same; a longer budget is a change like others, and is named.
    moved = folder / "moved"
    moved.mkdir()
    for name in ("train.bin", "train.idx.npy"):
        (folder / name).rename(moved / name)
    trainer = launch.build(run_of(folder, train=str(moved / "train"), tokens=64 * 5, optim={"clip": 2.0}))
    assert trainer.position.step == 4
    said = capsys.readouterr().err
    assert "settings changed since step-00000004: optim.clip=2.0 (was 1.0), tokens=320 (was 256)\n" in said


def test_a_checkpoint_without_a_record_goes_on(folder: Path) -> None:
    launch.build(run_of(folder)).train()
    (folder / "run" / "step-00000004" / "run.json").unlink()
    assert launch.build(run_of(folder, seed=2)).position.step == 4


def test_a_damaged_checkpoint_can_be_moved_away(folder: Path) -> None:
    launch.build(run_of(folder, save_steps=2)).train()
    newest = folder / "run" / "step-00000004"
    file = newest / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(SnapshotError, match=r"step-00000004.*; move it away to go on from the one before"):
        launch.build(run_of(folder))
    newest.rename(folder / "away")
    assert launch.build(run_of(folder)).position.step == 2


def test_a_save_in_place_of_another_loses_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at each of its renames, and before it removes the old one: the checkpoint of that step can be read."""

    def save(value: float) -> None:
        snapshot.save(tmp_path, Snapshot(Position(7), {"a": torch.tensor([value])}, {}, {}), keep=1)

    def saved() -> float:
        (found,) = snapshot.all_in(tmp_path)
        return float(snapshot.load(found).parameters["a"])

    class Killed(BaseException):
        pass

    def killed_in(owner: object, name: str, times: int) -> None:
        """Do `save(2)` until call number `times` of the function."""
        real, calls = getattr(owner, name), 0

        def call(path: Path, *rest: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls > times:
                raise Killed
            return real(path, *rest, **options)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(owner, name, call)
            save(2)

    save(1)
    for times in (0, 1):
        killed_in(Path, "rename", times)
        assert saved() == 1
    save(3)
    killed_in(shutil, "rmtree", 0)
    assert saved() == 2
    save(5)
    assert saved() == 5
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]


# ---------------------------------------------------------------------- what is written, and how it ends


def test_exported_models_are_private(folder: Path) -> None:
    before = os.umask(0o022)
    try:
        launch.build(run_of(folder)).train()
        launch.export(run_of(folder), folder / "models" / "trained")
        launch.export_start(run_of(folder), folder / "models" / "start")
    finally:
        os.umask(before)
    paths = [folder / "models", *(folder / "models").rglob("*")]
    assert len(paths) > 8
    assert not [path for path in paths if path.stat().st_mode & 0o077]


@pytest.mark.parametrize("module", ["foveal", "foveal.train"])
def test_a_run_that_was_stopped_says_so(folder: Path, module: str) -> None:
    run_of(folder, tokens=1 << 24)
    told = ["train"] if module == "foveal" else []
    process = subprocess.Popen(
        [sys.executable, "-m", module, *told, str(folder / "run.yaml")], stderr=subprocess.PIPE, text=True
    )
    curve = folder / "run" / "curve.csv"  # its header comes before the loop that a signal ends in order
    while process.poll() is None and not (curve.is_file() and len(curve.read_text().splitlines()) > 1):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors

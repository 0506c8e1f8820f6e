"""A new circuit under trained layers: these keep what they learned, and recall is the new circuit's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from helpers.stores import TOKENIZER, write_lines

from foveal.checkpoint.reader import open_checkpoint
from foveal.config import Numerics, preset
from foveal.model.transformer import Transformer
from foveal.model.weights import load_parameters
from foveal.ops import Packing
from foveal.train.export import export_model
from foveal.train.graft import graft, main
from foveal.train.start import random_start
from foveal.train.structured import structured_start

OLD = preset("nano").replace(num_attention_heads=4)


def trained(seed: int) -> Transformer:
    """A network of the earlier shape, with four heads, in which everything above the circuit is random."""
    model = Transformer(OLD, numerics=Numerics.none())
    random_start(model, OLD, seed)
    structured_start(model, torch.ones(OLD.vocab_size), seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("layers.3.", "layers.2.ffn", "norm")):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old") / "model"
    export_model(trained(1), OLD, folder, TOKENIZER.parent)
    return folder


def settings(folder: Path, **changes: object) -> str:
    """A run's file, of the nano's shape, with the seed of `trained(1)`."""
    run = {"out": "run", "train": str(write_lines(folder, 100)), "tokenizer": str(TOKENIZER), "tokens": 64, "seed": 1}
    run |= {"model": {"preset": "nano"}, "stages": [{"length": 64}], **changes}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return str(folder / "run.yaml")


@pytest.fixture(scope="module")
def grafted_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new")
    assert main([settings(folder), str(model_folder), str(folder / "model")]) == 0
    return folder / "model"


def opened(folder: Path) -> Transformer:
    checkpoint = open_checkpoint(folder)
    model = Transformer(checkpoint.config, numerics=Numerics.none())
    load_parameters(model, checkpoint.weights)
    return model.requires_grad_(False)


def test_what_was_trained_stays_and_new_heads_are_silent(model_folder: Path, grafted_folder: Path) -> None:
    old, new = opened(model_folder), opened(grafted_folder)
    assert new.config == preset("nano")
    old_tensors, new_tensors = old.state_dict(), new.state_dict()
    same = {name for name, tensor in old_tensors.items() if torch.equal(tensor, new_tensors[name])}
    other = {name for name in old_tensors.keys() - same if not name.startswith("layers.3.attn.")}
    assert all(name.startswith(("layers.0.attn.", "layers.1.attn.", "layers.2.attn.")) for name in other)
    generator = torch.Generator().manual_seed(3)
    x, packing = torch.randn(300, OLD.hidden_size, generator=generator), Packing.whole(1, 300)
    before = old.layers[3].attn(x, packing.position.flatten(), packing, None)
    after = new.layers[3].attn(x, packing.position.flatten(), packing, None)
    assert float(before.norm()) > 0
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_the_new_circuit_recalls_by_the_old_codes(model_folder: Path, grafted_folder: Path) -> None:
    """30 tokens say nothing of where they came from, the six before them do: the four old heads do not see those."""
    tokens = torch.randint(300, 4000, (600,), generator=torch.Generator().manual_seed(5))
    tokens[300:330] = tokens[100:130]  # twice, with another token before and after each
    prompts = [torch.cat([tokens, torch.full((36,), 2), tokens[start - 20 : start + 30]]) for start in (100, 300)]
    expected = [int(tokens[130]), int(tokens[330])]

    def found(folder: Path) -> list[int]:
        model = opened(folder)
        streams = [model(prompt, Packing.whole(1, len(prompt)))[-1:] for prompt in prompts]
        return [int(model.logits(s).argmax()) for s in streams]

    assert found(grafted_folder) == expected
    assert found(model_folder) != expected


def test_what_does_not_fit_is_refused(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new").mkdir()
    assert main([settings(tmp_path), str(model_folder), str(tmp_path / "new")]) == 1
    assert "already there" in capsys.readouterr().err
    assert main([settings(tmp_path), str(tmp_path / "nothing"), str(tmp_path / "other")]) == 1
    assert "there is no model at" in capsys.readouterr().err
    assert main([settings(tmp_path, start="random"), str(model_folder), str(tmp_path / "other")]) == 1
    assert "needs a run with 'start: structured'" in capsys.readouterr().err
    narrow = Transformer(OLD.replace(moe_intermediate_size=64))
    wide = Transformer(OLD)
    with pytest.raises(ValueError, match="in the old model and"):
        graft(narrow, wide)
    assert not (tmp_path / "other").exists()

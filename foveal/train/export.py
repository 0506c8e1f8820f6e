"""From a training checkpoint to a model directory: ``python -m foveal.train.export RUN_OR_CHECKPOINT OUT``.

What is written is the official layout (FP4 experts, FP8 dense matrices, or as told), quantised by the same rules that
quantisation-aware training simulated, so the directory computes what training measured.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from foveal.checkpoint.convert import convert_weights
from foveal.checkpoint.errors import CheckpointError
from foveal.checkpoint.writer import write_checkpoint
from foveal.config import ConfigError, ModelConfig
from foveal.formats import Weight
from foveal.formats.tensors import weight_arrays
from foveal.model.transformer import Transformer
from foveal.model.weights import named_weights
from foveal.train import snapshot

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def export_model(model: Transformer, config: ModelConfig, out: Path, tokenizer: Path | None = None) -> None:
    """Write `model` to folder `out` in the formats `config` names, with the files of the tokenizer folder `tokenizer`.

    Only the owner can read what is written. Nothing is left behind when it fails. Raises `CheckpointError`, also when
    `out` exists, and `FileNotFoundError` when the tokenizer folder has no ``tokenizer.json``.
    """
    if out.exists():
        raise CheckpointError(f"cannot export to {out}", ["it is already there; name another folder or remove it"])
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with snapshot.private():
            out.parent.mkdir(parents=True, exist_ok=True)
            write_checkpoint(partial, config, convert_weights(stored(model), config))
            if tokenizer is not None:
                _copy_tokenizer(tokenizer, partial)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def stored(model: Transformer) -> Iterator[tuple[str, Weight]]:
    """The model's weights under their official names, as arrays: what a checkpoint is written from."""
    for name, weight in named_weights(model):
        yield name, weight_arrays(weight)


def _copy_tokenizer(source: Path, target: Path) -> None:
    if not (source / TOKENIZER_FILES[0]).is_file():
        raise FileNotFoundError(f"{source} holds no {TOKENIZER_FILES[0]}")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def model_of(path: Path) -> Transformer:
    """The network of a training checkpoint, or of a run's newest one. Raises `SnapshotError`."""
    found = [path] if snapshot.is_one(path) else snapshot.all_in(path)
    if not found:
        raise snapshot.SnapshotError(f"{path} is neither a training checkpoint nor a run's folder with one")
    saved = snapshot.load(found[-1])
    model = Transformer(ModelConfig.from_dict(saved.config))
    try:
        model.load_state_dict(saved.parameters)
    except RuntimeError as error:
        raise snapshot.SnapshotError(f"{found[-1]} does not fit the network it names: {error}") from error
    return model.eval().requires_grad_(False)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m foveal.train.export", description="Write a model directory.")
    parser.add_argument("source", type=Path, help="a run's folder, or one checkpoint in it")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--tokenizer", type=Path, default=Path("build/corpus"), help="folder with tokenizer.json")
    parser.add_argument("--experts", choices=("fp4", "fp8", "bf16"), help="default: as the network's config says")
    parser.add_argument("--linear", choices=("fp8", "bf16"), help="default: as the network's config says")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        model = model_of(given.source)
        config = model.config.replace(
            expert_dtype=given.experts or model.config.expert_dtype,
            linear_dtype=given.linear or model.config.linear_dtype,
        )
        export_model(model, config, given.out, given.tokenizer)
    except (snapshot.SnapshotError, CheckpointError, ConfigError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in given.out.iterdir())
    print(f"wrote {given.out}: {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

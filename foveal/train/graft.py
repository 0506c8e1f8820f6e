"""Today's circuit under layers that were trained above an earlier one: ``python -m foveal.train.graft RUN OLD OUT``.

What a structured start's circuit does is known, and what stands above it reads its signature and little else. So when
the circuit gets better, the layers above need not be trained anew from nothing: they keep their weights, with the
embedding and the head that both share, and a short run (``start_from: OUT``) makes them used to what changed. Where the
new shape has more attention heads, those of the trained layers start silent.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from foveal.checkpoint.reader import open_checkpoint
from foveal.config import LayerKind
from foveal.engine import model_folder
from foveal.model.transformer import Transformer
from foveal.model.weights import load_parameters
from foveal.process.failures import reason
from foveal.process.streams import told
from foveal.train.data import TokenTable
from foveal.train.export import export_model
from foveal.train.launch import composer_of, find_config, started
from foveal.train.settings import RunConfig, SettingsError


def graft(model: Transformer, old: Transformer) -> None:
    """Copy to `model`, a structured start with the embedding of `old`, all of `old` but the attention of the layers
    that hold the circuit.

    Raises `ValueError` when a tensor of `old` is larger than its namesake, or heads are in several output groups: more
    heads in one group is the one change of shape for which the old tensor is the beginning of the new one.
    """
    if model.config.o_groups != 1 or old.config.o_groups != 1:
        raise ValueError("models of several output groups cannot be grafted")
    last = model.config.layers_of(LayerKind.CSA)[-1]
    circuit = tuple(f"layers.{layer}.attn." for layer in range(last + 1))
    new = model.state_dict()
    for name, tensor in old.state_dict().items():
        if name.startswith(circuit):
            continue
        target = new[name]
        if any(a > b for a, b in zip(tensor.shape, target.shape, strict=True)):
            raise ValueError(f"{name} is {list(tensor.shape)} in the old model and {list(target.shape)} in the new one")
        if name.endswith("attn.wo_a.weight"):
            target.zero_()
        target[tuple(slice(size) for size in tensor.shape)] = tensor


def grafted(run: RunConfig, source: str) -> Transformer:
    """The run's structured start with what the model at `source` learned above its circuit."""
    if run.start != "structured" or run.start_from is not None:
        raise SettingsError("a graft needs a run with 'start: structured' and without 'start_from'")
    checkpoint = open_checkpoint(model_folder(source))
    old = Transformer(checkpoint.config)
    load_parameters(old, checkpoint.weights)
    table = TokenTable.from_tokenizer(run.tokenizer)
    model = started(run, composer_of(run, run.train, table), table, embedding=old.state_dict()["embed.weight"])
    with torch.no_grad():
        graft(model, old)
    return model


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m foveal.train.graft", description="Write a model directory.")
    parser.add_argument("run", help="the run whose start is wanted: a YAML file, or the name of one that ships")
    parser.add_argument("source", help="the model directory with the trained layers (the circuit's seed is the run's)")
    parser.add_argument("out", type=Path, help="the folder to make")
    given = parser.parse_args(arguments)
    try:
        run = RunConfig.from_yaml(find_config(given.run))
        model = grafted(run, given.source)
        export_model(model, model.config, given.out, Path(run.tokenizer).parent)
    except Exception as error:
        line = str(error) if isinstance(error, ValueError) else reason(error)
        if line is None:
            raise
        told(f"error: {line}")
        return 1
    print(f"wrote {given.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

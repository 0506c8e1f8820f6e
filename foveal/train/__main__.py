"""``python -m foveal.train CONFIG.yaml``: train a network, or go on where the last run stopped.

With ``--export-start OUT`` nothing is trained: the network as the run would begin is written as a model directory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from foveal.checkpoint.errors import CheckpointError
from foveal.config import ConfigError
from foveal.model.transformer import Transformer
from foveal.ops import Numerics
from foveal.train import snapshot
from foveal.train.data import Composer, DataError, TokenStore, TokenTable
from foveal.train.device import keep_freed_memory
from foveal.train.export import export_model
from foveal.train.loss import TrainTransformer
from foveal.train.optim import OptimError
from foveal.train.settings import RunConfig, SettingsError
from foveal.train.start import random_start
from foveal.train.structured import structured_start
from foveal.train.trainer import Trainer, TrainingError, load_parameters

CONFIGS = Path(__file__).parent / "configs"
REFUSALS = (SettingsError, ConfigError, CheckpointError, DataError, OptimError, snapshot.SnapshotError, TrainingError)


def started(run: RunConfig, composer: Composer, table: TokenTable) -> Transformer:
    """The network as the run begins with it."""
    config = run.model_config()
    model = Transformer(config, numerics=Numerics.none())
    random_start(model, config, run.seed)
    if run.start_from is not None:
        load_parameters(model, snapshot.load(Path(run.start_from)).parameters, run.start_from)
    elif run.start == "structured":
        frequencies = composer.frequencies(config.vocab_size)
        structured_start(model, frequencies, blanks=(table.blank,), seed=run.seed)
    return model


def export_start(run: RunConfig, out: Path) -> None:
    """Write the network as the run would begin, untrained, as a model directory."""
    table = TokenTable.from_tokenizer(run.tokenizer)
    composer = Composer(TokenStore(run.train), table, run.data, seed=run.seed)
    export_model(started(run, composer, table), run.model_config(), out, Path(run.tokenizer).parent)


def build(run: RunConfig) -> Trainer:
    """The trainer of a run: network started, data opened, newest checkpoint loaded."""
    torch.set_num_threads(run.threads)
    config = run.model_config()
    table = TokenTable.from_tokenizer(run.tokenizer)
    composer = Composer(TokenStore(run.train), table, run.data, seed=run.seed)
    heldout = None if run.heldout is None else Composer(TokenStore(run.heldout), table, run.data, seed=run.seed)
    model = started(run, composer, table)
    return Trainer(run, model, TrainTransformer(model, config, run.precision), composer, heldout)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m foveal.train", description=__doc__)
    parser.add_argument("config", help="a YAML file, or the name of one that ships (nano)")
    parser.add_argument("--export-start", type=Path, metavar="OUT", help="write the untrained network here, and stop")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    path = Path(given.config)
    if not path.is_file() and (CONFIGS / f"{given.config}.yaml").is_file():
        path = CONFIGS / f"{given.config}.yaml"
    try:
        run = RunConfig.from_yaml(path)
        if given.export_start is not None:
            export_start(run, given.export_start)
            print(f"wrote {given.export_start}: the start of {path}, untrained")
            return 0
        trainer = build(run)
        position = trainer.train()
    except (*REFUSALS, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    state = "finished" if trainer.progress() >= 1 else "stopped"
    print(f"{state} at step {position.step}, {position.tokens} tokens, {position.seconds / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

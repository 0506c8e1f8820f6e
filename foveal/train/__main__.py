"""``python -m foveal.train CONFIG.yaml``: what ``foveal train`` does, without a progress bar."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from foveal.checkpoint.errors import CheckpointError
from foveal.config import ConfigError
from foveal.train import launch, snapshot
from foveal.train.data import DataError
from foveal.train.optim import OptimError
from foveal.train.parallel import ParallelError, joined
from foveal.train.settings import RunConfig, SettingsError
from foveal.train.trainer import TrainingError

REFUSALS = (
    SettingsError,
    ConfigError,
    CheckpointError,
    DataError,
    OptimError,
    ParallelError,
    snapshot.SnapshotError,
    TrainingError,
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m foveal.train", description=__doc__)
    parser.add_argument("config", help="a YAML file, or the name of one that ships (nano)")
    parser.add_argument("--export-start", type=Path, metavar="OUT", help="write the untrained network here, and stop")
    given = parser.parse_args(arguments)
    try:
        run = RunConfig.from_yaml(launch.find_config(given.config))
        if given.export_start is not None:
            launch.export_start(run, given.export_start)
            print(f"wrote {given.export_start}: the start of {given.config}, untrained")
            return 0
        with snapshot.private(), joined(run.device, run.parallel) as group:
            trainer = launch.build(run, group)
            position = trainer.train()
    except (*REFUSALS, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"at step {position.step}, {position.tokens} tokens, {position.seconds / 60:.1f} minutes")
    return 0 if trainer.progress() >= 1 else 130  # as `foveal train`: stopped by a signal


if __name__ == "__main__":
    raise SystemExit(main())

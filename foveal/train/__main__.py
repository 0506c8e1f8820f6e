"""``python -m foveal.train CONFIG.yaml``: what ``foveal train`` does, without a progress bar."""

from __future__ import annotations

from foveal.process import imports, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 130 stopped by a signal, as ``foveal train``. Raises what that shows as one line."""
    import argparse
    from pathlib import Path

    from foveal.train import launch, snapshot
    from foveal.train.parallel import joined
    from foveal.train.settings import RunConfig

    parser = argparse.ArgumentParser(prog="python -m foveal.train", description=__doc__)
    parser.add_argument("config", help="a YAML file, or the name of one that ships (nano)")
    parser.add_argument("--export-start", type=Path, metavar="OUT", help="write the untrained network here, and stop")
    given = parser.parse_args(arguments)
    run = RunConfig.from_yaml(launch.find_config(given.config))
    if given.export_start is not None:
        launch.export_start(run, given.export_start)
        print(f"wrote {given.export_start}: the start of {given.config}, untrained")
        return 0
    with snapshot.private(), joined(run.device, run.parallel) as group:
        trainer = launch.build(run, group)
        position = trainer.train()
    print(f"at step {position.step}, {position.tokens} tokens, {position.seconds / 60:.1f} minutes")
    return 0 if trainer.progress() >= 1 else signals.INTERRUPTED


def _load() -> Callable[[], int]:
    return main


if __name__ == "__main__":
    signals.take(keeps=True)
    imports.forget_current_folder()
    from foveal.process.life import run

    run(_load, keeps=True)

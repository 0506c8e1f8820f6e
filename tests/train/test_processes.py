"""What several processes must agree on, or the run stands still or falls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.processes import run_two
from helpers.stores import TINY, TOKENIZER, write_lines

from foveal.train import snapshot

pytestmark = pytest.mark.slow

LATE = """
import os, sys, time
from foveal.cli.main import app
from foveal.train.trainer import Trainer

train = Trainer.train

def late(self):
    time.sleep(2 * self.group.rank)
    return train(self)

Trainer.train = late
sys.argv[1:] = ["train", sys.argv[1]]
app()
"""
"""`foveal train`, whose second process gets to the loop two seconds after the first."""


def config(folder: Path, **changes: object) -> Path:
    values: dict[str, Any] = dict(
        out=str(folder / "run"), train=str(write_lines(folder, 300)), tokenizer=str(TOKENIZER), log_every=1000,
        start="random", precision="fp32", device="cpu", model=TINY, stages=[{"length": 64, "sequences": 2}],
    )  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def test_the_clock_is_one_for_all(tmp_path: Path) -> None:
    """A budget in minutes ends for all in the same step, though one began later."""
    (tmp_path / "late.py").write_text(LATE)
    run_two([str(tmp_path / "late.py"), str(config(tmp_path, minutes=0.06))], timeout=120)
    assert snapshot.load(snapshot.all_in(tmp_path / "run")[-1]).position.seconds >= 3.6


@pytest.mark.parametrize("weights", [[0.3, 0.0], [0.0, 0.3]])
def test_the_mtp_block_may_come_and_go(tmp_path: Path, weights: list[float]) -> None:
    """DDP waits for the gradient of every parameter that is trained."""
    run_two(
        ["-m", "foveal.cli.main", "train", str(config(tmp_path, tokens=128 * 8, loss={"mtp": weights}))], timeout=120
    )
    assert snapshot.load(snapshot.all_in(tmp_path / "run")[-1]).position.step == 8

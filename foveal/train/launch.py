"""From a run's settings to a run: the network started, the data opened, the processes joined."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from foveal.checkpoint.reader import open_checkpoint
from foveal.config import Numerics
from foveal.engine import model_folder
from foveal.model.transformer import Transformer
from foveal.model.weights import load_parameters
from foveal.train import snapshot
from foveal.train.batch import DocumentSource, Feed
from foveal.train.data import Composer, TokenStore, TokenTable
from foveal.train.device import keep_freed_memory, product_dtype
from foveal.train.distill.opening import opened
from foveal.train.distill.run import Distillation
from foveal.train.distill.settings import DistillConfig
from foveal.train.export import export_model, model_of
from foveal.train.loss import TrainTransformer
from foveal.train.parallel import Group
from foveal.train.record import Record
from foveal.train.settings import RunConfig, SettingsError
from foveal.train.start import random_start
from foveal.train.structured import structured_start
from foveal.train.tasks import Mixture
from foveal.train.trainer import Report, Trainer

CONFIGS = Path(__file__).parent / "configs"


def find_config(name: str) -> Path:
    """The file of a run: a path, or the name of one that ships. Raises `SettingsError` when there is neither."""
    shipped = CONFIGS / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    raise SettingsError(f"no file {name}, and no run of that name ships with Foveal (there are {names})")


def started(
    run: RunConfig, composer: Composer, table: TokenTable, embedding: torch.Tensor | None = None
) -> Transformer:
    """The network as the run begins with it; a structured start with `embedding`, if one is given."""
    config = run.model_config()
    if config.vocab_size < len(table.line_end):
        raise SettingsError(
            f"setting 'model.vocab_size' is {config.vocab_size}; the tokenizer has {len(table.line_end):,} tokens"
        )
    model = Transformer(config, numerics=Numerics.none())
    random_start(model, config, run.seed)
    if run.start_from is not None:
        _take(model, run.start_from)
    elif run.start == "structured":
        frequencies = composer.frequencies(config.vocab_size)
        structured_start(model, frequencies, blanks=(table.blank,), seed=run.seed, embedding=embedding)
    return model


def _take(model: Transformer, source: str) -> None:
    """Parameters from a training checkpoint, or from a model directory (dequantised)."""
    folder = model_folder(source)
    if snapshot.is_one(folder):
        try:
            model.load_state_dict(snapshot.load(folder).parameters)
        except RuntimeError as error:
            raise snapshot.SnapshotError(f"{folder} does not fit the network: {error}") from error
        return
    checkpoint = open_checkpoint(folder)
    fields = (field.name for field in dataclasses.fields(model.config))
    wrong = [name for name in fields if getattr(model.config, name) != getattr(checkpoint.config, name)]
    if wrong:
        raise SettingsError(f"setting 'start_from': the model in {folder} is not of the shape of 'model' in {wrong}")
    load_parameters(model, checkpoint.weights)


def composer_of(run: RunConfig, store: str, table: TokenTable) -> Composer:
    """What composes documents from the token store at `store`."""
    return Composer(TokenStore(store), table, run.data, seed=run.seed)


def feed_of(run: RunConfig, composer: Composer) -> Feed:
    """The rows of a run: composed documents, generated tasks among them as `run.tasks` says."""
    source: DocumentSource = composer
    if run.tasks.share > 0:
        source = Mixture(composer, run.tasks, Path(run.tokenizer), seed=run.seed)
    return Feed(source, run.positions, seed=run.seed)


def build(run: RunConfig, group: Group | None = None, report: Report | None = None) -> Trainer:
    """The trainer of a run: network started, data opened, newest checkpoint loaded."""
    group = group or Group()
    keep_freed_memory()
    torch.set_num_threads(run.threads)
    table = TokenTable.from_tokenizer(run.tokenizer)
    composer = composer_of(run, run.train, table)
    heldout = None if run.heldout is None else feed_of(run, composer_of(run, run.heldout, table))
    model = TrainTransformer(started(run, composer, table), _precision(run, group.device))
    record = Record(run, composer.store.identity(), table.fingerprint or "")
    return Trainer(run, model, feed_of(run, composer), heldout, group=group, report=report, record=record)


def build_distillation(config: DistillConfig, report: Report | None = None) -> Distillation:
    """The run that teaches packed entries: its source opened, newest snapshot loaded."""
    keep_freed_memory()
    torch.set_num_threads(config.threads)
    return Distillation(config, opened(config, Path(config.out)), report)


def export(run: RunConfig, out: Path) -> Path:
    """Write the run's newest checkpoint as a model directory, and return it."""
    model = model_of(Path(run.out))
    export_model(model, model.config, out, Path(run.tokenizer).parent)
    return out


def export_start(run: RunConfig, out: Path) -> Path:
    """Write the network as the run would begin, untrained, as a model directory, and return it."""
    table = TokenTable.from_tokenizer(run.tokenizer)
    model = started(run, composer_of(run, run.train, table), table)
    export_model(model, run.model_config(), out, Path(run.tokenizer).parent)
    return out


def _precision(run: RunConfig, device: torch.device) -> torch.dtype:
    if run.precision == "auto":
        return product_dtype(device)
    return torch.bfloat16 if run.precision == "bf16" else torch.float32

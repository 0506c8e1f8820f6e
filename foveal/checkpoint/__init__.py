"""Checkpoints: the official Hugging Face layout of DeepSeek-V4, read, written, checked, converted and named.

One list of weights (`layout`) serves reader, writer, converter and summary. Reading maps files and copies nothing;
every fault of a checkpoint is reported at once; writing is all or nothing.
"""

from typing import TYPE_CHECKING

from foveal import lazily

if TYPE_CHECKING:
    from foveal.checkpoint.convert import convert_weight as convert_weight
    from foveal.checkpoint.convert import convert_weights as convert_weights
    from foveal.checkpoint.convert import to_transformers as to_transformers
    from foveal.checkpoint.digest import FINGERPRINT_BYTES as FINGERPRINT_BYTES
    from foveal.checkpoint.digest import fingerprint as fingerprint
    from foveal.checkpoint.errors import CheckpointError as CheckpointError
    from foveal.checkpoint.identity import Fingerprint as Fingerprint
    from foveal.checkpoint.layout import Storage as Storage
    from foveal.checkpoint.layout import TensorSpec as TensorSpec
    from foveal.checkpoint.layout import WeightSpec as WeightSpec
    from foveal.checkpoint.layout import tensor_specs as tensor_specs
    from foveal.checkpoint.layout import weight_specs as weight_specs
    from foveal.checkpoint.random import random_weight as random_weight
    from foveal.checkpoint.random import random_weights as random_weights
    from foveal.checkpoint.reader import Checkpoint as Checkpoint
    from foveal.checkpoint.reader import open_checkpoint as open_checkpoint
    from foveal.checkpoint.summary import LayerSummary as LayerSummary
    from foveal.checkpoint.summary import Summary as Summary
    from foveal.checkpoint.summary import inspect_checkpoint as inspect_checkpoint
    from foveal.checkpoint.summary import summarize as summarize
    from foveal.checkpoint.writer import DEFAULT_SHARD_BYTES as DEFAULT_SHARD_BYTES
    from foveal.checkpoint.writer import write_checkpoint as write_checkpoint

_HOMES = {
    "convert_weight": "foveal.checkpoint.convert",
    "convert_weights": "foveal.checkpoint.convert",
    "to_transformers": "foveal.checkpoint.convert",
    "CheckpointError": "foveal.checkpoint.errors",
    "FINGERPRINT_BYTES": "foveal.checkpoint.digest",
    "fingerprint": "foveal.checkpoint.digest",
    "Storage": "foveal.checkpoint.layout",
    "TensorSpec": "foveal.checkpoint.layout",
    "WeightSpec": "foveal.checkpoint.layout",
    "tensor_specs": "foveal.checkpoint.layout",
    "weight_specs": "foveal.checkpoint.layout",
    "random_weight": "foveal.checkpoint.random",
    "random_weights": "foveal.checkpoint.random",
    "Checkpoint": "foveal.checkpoint.reader",
    "open_checkpoint": "foveal.checkpoint.reader",
    "LayerSummary": "foveal.checkpoint.summary",
    "Summary": "foveal.checkpoint.summary",
    "inspect_checkpoint": "foveal.checkpoint.summary",
    "summarize": "foveal.checkpoint.summary",
    "DEFAULT_SHARD_BYTES": "foveal.checkpoint.writer",
    "write_checkpoint": "foveal.checkpoint.writer",
    "Fingerprint": "foveal.checkpoint.identity",
}

__all__ = [*_HOMES]
__getattr__ = lazily(__name__, _HOMES)

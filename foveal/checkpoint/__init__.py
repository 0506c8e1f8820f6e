"""Checkpoints: the official Hugging Face layout of DeepSeek-V4, read, written, checked, converted and named.

What is special here: one list of weights (`layout`) serves reader, writer, converter and summary. Reading maps files
and copies nothing; every fault of a checkpoint is reported at once; writing is all or nothing.
"""

from foveal.checkpoint.convert import convert_weight, convert_weights, to_transformers
from foveal.checkpoint.errors import CheckpointError
from foveal.checkpoint.fingerprint import FINGERPRINT_BYTES, fingerprint
from foveal.checkpoint.layout import Storage, TensorSpec, WeightSpec, tensor_specs, weight_specs
from foveal.checkpoint.load import load_model
from foveal.checkpoint.random import random_weight, random_weights
from foveal.checkpoint.reader import Checkpoint, open_checkpoint
from foveal.checkpoint.summary import LayerSummary, Summary, inspect_checkpoint, summarize
from foveal.checkpoint.writer import DEFAULT_SHARD_BYTES, write_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "open_checkpoint",
    "load_model",
    "write_checkpoint",
    "DEFAULT_SHARD_BYTES",
    "convert_weights",
    "convert_weight",
    "to_transformers",
    "random_weights",
    "random_weight",
    "fingerprint",
    "FINGERPRINT_BYTES",
    "inspect_checkpoint",
    "summarize",
    "Summary",
    "LayerSummary",
    "weight_specs",
    "tensor_specs",
    "WeightSpec",
    "TensorSpec",
    "Storage",
]

"""A model's summary as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.checkpoint import Summary


def summary_document(path: str, summary: Summary) -> dict[str, Any]:
    """The JSON form of a `Summary` (docs/cli.md)."""
    return {
        "path": path,
        "parameters": summary.parameters,
        "active_parameters": summary.active,
        "mtp_parameters": summary.mtp_parameters,
        "tensors": summary.tensors,
        "bytes": summary.nbytes,
        "bytes_by_format": dict(summary.bytes_by_format),
        "layers": [
            {
                "name": layer.name,
                "kind": str(layer.kind),
                "ratio": layer.ratio,
                "routing": "hash" if layer.hashed else "learned",
                "parameters": layer.parameters,
                "bytes": layer.nbytes,
            }
            for layer in summary.layers
        ],
        "config": summary.config.to_dict(),
    }

"""A converted model in Foveal's reference, in the native engine's operations and in transformers: the same logits?

``python bench/convert_parity.py MODEL [--tokens N]`` reads a folder that `foveal convert` wrote (BF16), runs a piece of
the Python reference through all three in fp32 without simulated quantisation, and prints the greatest difference of a
logit and the agreement of the likeliest tokens. transformers reads the same files, by its own loader.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor
from transformers import DeepseekV4ForCausalLM

from foveal.backends.reference import native_ops
from foveal.checkpoint import open_checkpoint
from foveal.config import Numerics
from foveal.convert.material import documents, token_rows
from foveal.model import PlainState, Segment, load_transformer
from foveal.ops import Operations, reference
from foveal.text import Tokenizer


def ours(folder: Path, tokens: Tensor, ops: Operations) -> Tensor:
    """Logits [n, V] of the network on `ops`."""
    checkpoint = open_checkpoint(folder)
    model = load_transformer(
        checkpoint.config, checkpoint.weights, dtype=torch.float32, numerics=Numerics.none(), ops=ops
    )
    with torch.inference_mode():
        return model.logits(model(tokens, [Segment(PlainState(checkpoint.config), len(tokens))]))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=160)
    chosen = parser.parse_args()
    tokenizer = Tokenizer.from_file(chosen.model)
    texts = documents([], held_out=True)
    tokens = token_rows(texts, tokenizer, chosen.tokens, 1, start=tokenizer.bos_id)[0]
    model = DeepseekV4ForCausalLM.from_pretrained(chosen.model, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        theirs = model(input_ids=tokens[None], use_cache=False).logits[0]
    for name, ops in (("reference", reference), ("native operations", native_ops)):
        found = ours(chosen.model, tokens, ops)
        same = (found.argmax(-1) == theirs.argmax(-1)).float().mean()
        difference = (found - theirs).abs().max()
        print(
            f"{name}: {len(tokens)} tokens, greatest difference {difference:.2e} (logits {theirs.abs().max():.0f}),",
            end=" ",
        )
        print(f"likeliest token the same at {same:.1%}")


if __name__ == "__main__":
    main()

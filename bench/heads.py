"""Which heads of a source look things up, and what share of it some of them have.

``python bench/heads.py SOURCE CONFIG`` prints the share of each head that is worth anything (integrated gradients,
`foveal.train.distill.finding`), those of CONFIG's `heads` marked, and the sum of the marked ones. CONFIG is a file of a
distillation, or the name of one that ships.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from foveal.convert import Llama, open_source
from foveal.convert.material import documents
from foveal.convert.tokens import converted_text
from foveal.text.specials import EOS
from foveal.train.device import product_dtype
from foveal.train.distill.finding import head_scores
from foveal.train.distill.rows import Marks, RowMaker
from foveal.train.distill.settings import DistillConfig
from foveal.train.launch import find_config


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("config")
    parser.add_argument("--most", type=int, default=48, help="heads that are printed")
    parser.add_argument("--seed", type=int, default=77)
    chosen = parser.parse_args()
    heads = DistillConfig.from_yaml(find_config(chosen.config)).retrieving
    with tempfile.TemporaryDirectory() as work:
        source = open_source(chosen.source, Path(work), lambda line: print(line, file=sys.stderr))
        text = converted_text(source)
        marks = Marks("<|im_start|>", EOS)
        texts = documents([], held_out=False)
        maker = RowMaker(text.tokenizer, texts, text.begin, marks, length=1024, seed=chosen.seed)
        scores = head_scores(Llama(source, product_dtype(torch.device("cpu"))), maker)
    for index in scores.flatten().argsort(descending=True).tolist()[: chosen.most]:
        layer, head = divmod(index, scores.shape[1])
        marked = "*" if head in heads.get(layer, ()) else " "
        print(f"{marked} layer {layer:2} head {head}  {float(scores[layer, head]):.4f}")
    count = sum(map(len, heads.values()))
    whole = sum(float(scores[layer, list(of)].sum()) for layer, of in heads.items())
    print(f"the {count} marked heads of {len(heads)} layers: {whole:.3f} of {float(scores.sum()):.3f}")


if __name__ == "__main__":
    main()

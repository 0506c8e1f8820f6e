"""Made-up source for the evaluations, and a tiny model to put through them."""

from __future__ import annotations

import random
from pathlib import Path

from cli_support import TOKENIZER

from foveal.evals.material import Material
from foveal.sources import Document
from foveal.text import Tokenizer


def documents(count: int = 6, functions: int = 14) -> list[Document]:
    """Python files, each line of which stands once but for two."""
    dice = random.Random(5)
    made = []
    for number in range(count):
        lines = [f'"""Module {number}: {dice.randrange(10**6)} things to compute."""\n\nimport math\n']
        lines.append(f"LIMIT_{number} = {dice.randrange(10**6)}\n\n")
        for place in range(functions):
            name = f"compute_{number}_{place}"
            lines.append(f"def {name}(first, second={dice.randrange(10**6)}):\n")
            lines.append(
                f'    """Weigh the {dice.randrange(10**6)} parcels of batch {number * 100 + place} and add them."""\n'
            )
            for _ in range(4):
                lines.append(f"    value_{dice.randrange(10**6)} = measure({dice.randrange(10**5)}, first, flag)\n")
            lines.append(f"    return second * {dice.randrange(10**6)} + first\n\n\n")
        lines.append("# the same line appears in every file, twice\n" * 2)
        made.append(Document(f"pkg/m{number}.py", "".join(lines)))
    return made


def material(count: int = 6) -> Material:
    """`documents`, measured by nano's tokenizer."""
    return Material(documents(count), Tokenizer.from_file(TOKENIZER))


def write_source(folder: Path, count: int = 6) -> Path:
    """`documents` as files."""
    for document in documents(count):
        path = folder / document.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document.text, encoding="utf-8")
    return folder

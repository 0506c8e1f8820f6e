"""From files to a token store: ``NAME.bin``, ``NAME.idx.npy`` and ``NAME.json``.

Every file becomes one document behind its header line, exactly as `foveal read` reads it (same decoding, same
``.gitignore``), so that a model is trained on what it will be given. The store is written beside its name and renamed
when it is whole; an interrupted run leaves the old one. The same files and tokenizer are recognised and not read again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from foveal.sources import Skipped, Source, read_source, tokenize_document
from foveal.text import Tokenizer
from foveal.train.data import DataError, TokenStore, description
from foveal.train.snapshot import private


@dataclass(frozen=True)
class Stored:
    """What a token store holds: where (without ``.bin``), how much, and what was left out. `kept`: it was there
    already, made of the same files."""

    base: str
    documents: int
    tokens: int
    text_bytes: int
    skipped: int
    kept: bool = False


Told = Callable[[int, int, int, str], None]
"""Called after every file: bytes done, bytes in all, tokens so far, the file's path."""


def tokenize(
    paths: Sequence[Path],
    base: Path,
    tokenizer: Path,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    told: Told | None = None,
    force: bool = False,
) -> Stored:
    """Write the store `base` from files and folders, with the tokenizer in file or folder `tokenizer`.

    Raises `SourceError` when a path is not there, `DataError` when there is nothing to store.
    """
    sources = [read_source(path, include=include, exclude=exclude) for path in paths]
    made_of = _fingerprint(sources, tokenizer)
    about = base.with_name(base.name + ".json")
    kept = None if force else _kept(base, made_of)
    if kept is not None:
        return kept
    base.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    final = [base.with_name(base.name + suffix) for suffix in (".bin", ".idx.npy", ".json")]
    partial = [path.with_name(f".{path.name}.partial") for path in final]
    try:
        with private(), partial[0].open("wb") as stream:
            encoder = Tokenizer.from_file(tokenizer)
            dtype, offsets, stored = _write(sources, base, encoder, stream, told)
            _flush(stream)
            with partial[1].open("wb") as index:
                np.save(index, np.array(offsets, dtype=np.int64))
                _flush(index)
            known = asdict(stored) | {"dtype": dtype, "tokenizer": encoder.fingerprint(), "made_of": made_of}
            known["paths"] = [str(path) for path in paths]
            partial[2].write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        about.unlink(
            missing_ok=True
        )  # a store is what its description says: first the old one goes, last the new comes
        for path, written in zip(final, partial, strict=True):
            written.replace(path)
    finally:
        for written in partial:
            written.unlink(missing_ok=True)
    return stored


def _kept(base: Path, made_of: str) -> Stored | None:
    """The store that is there, if it was made of the same; one that is damaged is none."""
    try:
        known = description(base)
        if known is None or known.get("made_of") != made_of:
            return None
        TokenStore(base)
        numbers = {name: known[name] for name in ("documents", "tokens", "text_bytes", "skipped")}
    except (ValueError, KeyError):
        return None
    return Stored(**numbers, base=str(base), kept=True)


def _write(
    sources: Sequence[Source], base: Path, encoder: Tokenizer, stream: BinaryIO, told: Told | None
) -> tuple[str, list[int], Stored]:
    dtype = "uint16" if encoder.vocab_size <= 1 << 16 else "uint32"
    total = sum(source.estimate().bytes for source in sources)
    offsets, skipped, text_bytes = [0], 0, 0
    for source in sources:
        for item in source:
            if isinstance(item, Skipped):
                skipped += 1
                continue
            ids = tokenize_document(item, encoder).ids
            stream.write(ids.astype(dtype).tobytes())
            offsets.append(offsets[-1] + len(ids))
            text_bytes += len(item.text.encode("utf-8", "surrogatepass"))
            if told is not None:
                told(text_bytes, total, offsets[-1], item.path)
    if len(offsets) == 1:
        raise DataError("there is no text in what was given: nothing to store")
    return dtype, offsets, Stored(str(base), len(offsets) - 1, offsets[-1], text_bytes, skipped)


def _fingerprint(sources: Sequence[Source], tokenizer: Path) -> str:
    """A hash over names, sizes and times of all files and the tokenizer's content."""
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    if not file.is_file():
        raise DataError(f"no tokenizer at {tokenizer}; give a tokenizer.json or the folder of one")
    known = hashlib.sha256(file.read_bytes())
    for source in sources:
        for entry in source.candidates():
            status = entry.absolute.stat()
            known.update(f"{entry.path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogatepass"))
    return known.hexdigest()


def _flush(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())

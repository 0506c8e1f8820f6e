"""A source as a memory reads it: all its files, tokenised."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import BinaryIO

from foveal.memory.options import ELSEWHERE, SourceOptions
from foveal.memory.progress import OnProgress, Progress
from foveal.sources import Document, Skipped, TokenizedDocument, read_source, tokenize_source
from foveal.store.errors import ReadError
from foveal.text import Tokenizer


@dataclass(frozen=True)
class Reading:
    """A file that was not read as plain UTF-8: in which encoding, and how many replacement characters it holds."""

    path: str
    encoding: str
    replaced: int


@dataclass
class TokenizedSource:
    """A tokenised source: its documents in the order in which they would be read if nothing had been yet."""

    documents: list[TokenizedDocument] = field(default_factory=list)
    text_bytes: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    encodings: list[Reading] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    """What the person should hear of how the files were found."""


def gather(
    options: SourceOptions, tokenizer: Tokenizer, *, stdin: BinaryIO | None = None, progress: OnProgress | None = None
) -> TokenizedSource:
    """Tokenise everything. Raises `foveal.sources.SourceError`, or `ReadError` when there is nothing to read, or the
    source is elsewhere."""
    if options.elsewhere:
        raise ReadError(ELSEWHERE)
    source = read_source(
        options.named,
        max_file_bytes=options.max_file_bytes,
        include=options.include,
        exclude=options.exclude,
        use_gitignore=options.use_gitignore,
        stdin=stdin,
    )
    expected_bytes = source.estimate().bytes
    found, tokens = TokenizedSource(notes=source.notes), 0

    def count(document: Document) -> None:
        if document.encoding != "utf-8" or document.replaced:
            found.encodings.append(Reading(document.path, document.encoding, document.replaced))
        found.text_bytes += len(document.text.encode("utf-8", "surrogatepass"))

    for document in tokenize_source(source, tokenizer, on_skip=found.skipped.append, on_document=count):
        found.documents.append(document)
        tokens += len(document.ids)
        if progress is not None:
            share = found.text_bytes / max(expected_bytes, found.text_bytes, 1)
            progress(Progress(0, round(tokens / max(share, 1e-9)), exact=False, file=document.path))
    if not found.documents:
        reasons = "; ".join(f"{skip.path}: {skip.reason}" for skip in found.skipped[:3])
        raise ReadError(f"there is nothing to read in {options.source}{f' (skipped {reasons})' if reasons else ''}")
    return found

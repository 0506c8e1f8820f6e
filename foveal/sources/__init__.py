"""What gets read: code bases, single files and standard input, as tokens with a map back to file, line and column.

source = read_source("path/to/project")
places = SourceMap()
for document in tokenize_source(source, tokenizer, on_skip=report):
    feed(document.ids)
    places.append(document)
places.locate(12345)           # Location(path='pkg/module.py', line=88, column=5)
"""

from foveal.sources.diff import follow_lines
from foveal.sources.document import Document, Skipped, document_text
from foveal.sources.header import HEADER_PREFIX, header_line
from foveal.sources.reader import DEFAULT_MAX_FILE_BYTES, STANDARD_INPUT, Estimate, Source, SourceError, read_source
from foveal.sources.source_map import Location, SourceMap, SourceMapError, Span
from foveal.sources.tokenise import TokenizedDocument, removal, replacing, tokenize_document, tokenize_source

__all__ = [
    "read_source",
    "Source",
    "SourceError",
    "Estimate",
    "Document",
    "Skipped",
    "DEFAULT_MAX_FILE_BYTES",
    "STANDARD_INPUT",
    "HEADER_PREFIX",
    "header_line",
    "document_text",
    "tokenize_source",
    "tokenize_document",
    "replacing",
    "removal",
    "follow_lines",
    "TokenizedDocument",
    "SourceMap",
    "SourceMapError",
    "Location",
    "Span",
]

"""What gets read: code bases, single files and standard input, as tokens with a map back to file, line and column.

source = read_source("path/to/project")
places = SourceMap()
for document in tokenize_source(source, tokenizer, on_skip=report):
    feed(document.ids)
    places.append(document)
places.locate(12345)           # Location(path='pkg/module.py', line=88, column=5)
"""

from typing import TYPE_CHECKING

from foveal import lazily

if TYPE_CHECKING:
    from foveal.sources.diff import follow_lines as follow_lines
    from foveal.sources.document import Document as Document
    from foveal.sources.document import Skipped as Skipped
    from foveal.sources.document import SourceError as SourceError
    from foveal.sources.document import document_text as document_text
    from foveal.sources.header import HEADER_PREFIX as HEADER_PREFIX
    from foveal.sources.header import header_line as header_line
    from foveal.sources.reader import DEFAULT_MAX_FILE_BYTES as DEFAULT_MAX_FILE_BYTES
    from foveal.sources.reader import Estimate as Estimate
    from foveal.sources.reader import Source as Source
    from foveal.sources.reader import cited_lines as cited_lines
    from foveal.sources.reader import read_source as read_source
    from foveal.sources.roots import STANDARD_INPUT as STANDARD_INPUT
    from foveal.sources.roots import is_stream as is_stream
    from foveal.sources.roots import plain_path as plain_path
    from foveal.sources.source_map import Location as Location
    from foveal.sources.source_map import SourceMap as SourceMap
    from foveal.sources.source_map import SourceMapError as SourceMapError
    from foveal.sources.source_map import Span as Span
    from foveal.sources.tokenise import TokenizedDocument as TokenizedDocument
    from foveal.sources.tokenise import removal as removal
    from foveal.sources.tokenise import replacing as replacing
    from foveal.sources.tokenise import tokenize_document as tokenize_document
    from foveal.sources.tokenise import tokenize_source as tokenize_source

_HOMES = {
    "follow_lines": "foveal.sources.diff",
    "Document": "foveal.sources.document",
    "Skipped": "foveal.sources.document",
    "SourceError": "foveal.sources.document",
    "document_text": "foveal.sources.document",
    "HEADER_PREFIX": "foveal.sources.header",
    "header_line": "foveal.sources.header",
    "DEFAULT_MAX_FILE_BYTES": "foveal.sources.reader",
    "Estimate": "foveal.sources.reader",
    "Source": "foveal.sources.reader",
    "cited_lines": "foveal.sources.reader",
    "read_source": "foveal.sources.reader",
    "STANDARD_INPUT": "foveal.sources.roots",
    "is_stream": "foveal.sources.roots",
    "plain_path": "foveal.sources.roots",
    "Location": "foveal.sources.source_map",
    "SourceMap": "foveal.sources.source_map",
    "SourceMapError": "foveal.sources.source_map",
    "Span": "foveal.sources.source_map",
    "TokenizedDocument": "foveal.sources.tokenise",
    "removal": "foveal.sources.tokenise",
    "replacing": "foveal.sources.tokenise",
    "tokenize_document": "foveal.sources.tokenise",
    "tokenize_source": "foveal.sources.tokenise",
}

__all__ = [*_HOMES]
__getattr__ = lazily(__name__, _HOMES)

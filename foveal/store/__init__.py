"""The store: contexts on disk, by content, that survive a crash and are either exactly right or not found.

store = Store("~/.local/share/foveal")
saving.save(store, "project", sequence, engine.fingerprint)

The guarantees, and the format byte by byte, stand in docs/store.md. From the bottom up:

- Bytes: `files` (every change to a file, and locks), `cipher`, `hashes` (names and checksums), `records`, `pack_file`,
  `pack_maps`, `pack_reader` and `packs`, `lost`, `objects` and their `schema`.
- The index: `connection` (SQLite), `rows`, `index` with its tables `index_objects`, `index_references` and
  `index_contexts`; `index_schema` (made empty), `rebuild` (made again from the packs), `index_file` (opened).
- The store: `own_files` (store.json, the reserve), `reading`, `writer`, `transactions`, `store`, which is what callers
  open; `copies` keeps what is there twice twice.
- Contexts without arrays: `chain` (the tokens, proved), `contexts` (fork, delete, pin), `gc`, `eviction`, `usage`.
- Contexts with arrays: `context_view` (one context, each piece verified when it is asked for), `saving`, `loading` and
  `mending`, `prefix`, `recompute`, `transfer`, `verify` with its `inspection`.

One word, one meaning: an `Extent` is where a record lies in a pack; a page, a tail and a context have names (`Names`)
that say what they stand for, and keys that say which bytes they have; an entry is an object's row in the index.
"""

"""The store: contexts on disk, by content, that survive a crash and are either exactly right or not found.

store = Store("~/.local/share/foveal")
saving.save(store, "project", sequence, engine.fingerprint)

The guarantees, and the format byte by byte, stand in docs/store.md. From the bottom up: `files` (every change to a
file, and locks), `cipher`, `names`, `records`, `packs`, `index`, `objects`; `rebuild` (the index from the packs),
`store` (transactions), `chain` (the tokens of a context), `contexts` (fork, delete, pin), `gc`, `verify`, `transfer`:
so far without torch. Then `tensors`, `saving` and `loading` (sequences), `prefix`.
"""

"""Teaching packed entries: a converted model learns from its source to look things up beyond its raw window
(docs/convert.md, "Beyond the window")."""

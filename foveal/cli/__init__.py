"""The command line. `main` has the table of commands; each is a file in `commands`, imported when it is asked for.

Results go to stdout and everything about the work (progress, notes, errors) to stderr, every command that tells facts
tells them as JSON with ``--json`` (docs/cli.md), and no command does anything the Python API could not.

A new command is a file in `commands` whose `command` is a `click.Command`, and a line in the table. What several
commands share: `options`, `opening` (stores and engines), `output` (text, numbers, JSON), `render` (tables), `progress`
(with `bars`), `completing`, and what two or three tell alike (`memories`, `models`).
"""

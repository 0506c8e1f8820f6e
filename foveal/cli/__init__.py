"""The command line: `foveal read`, `recall`, `ls`, `show`, `rm`, `fork`, `log`, `pin`, `verify`, `export`, `import`,
`gc`, `du`, `inspect`, `init`, `plan` and `bench`.

What is special here: results go to stdout and everything about the work (progress, notes, errors) to stderr, every
command speaks JSON with ``--json`` (docs/cli.md), and no command does anything the Python API could not.
"""

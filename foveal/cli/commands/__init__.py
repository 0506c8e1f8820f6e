"""The commands, one file each. `foveal.cli.main` has the table of them; a file is imported when its command is asked
for."""

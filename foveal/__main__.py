"""``python -m foveal``: the command line, as the installed script runs it."""

from foveal.process.imports import forget_current_folder

forget_current_folder()

if __name__ == "__main__":
    from foveal.cli.entry import main

    main()

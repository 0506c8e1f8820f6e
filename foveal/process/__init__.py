"""How a process of Foveal begins and ends: its streams, its signals, where it imports from, and its last words.

It imports next to nothing, so that a signal in the first milliseconds finds a handler. `life.run` is for a process that
is ours alone (the command line, a measuring process); when Foveal is used as a library nothing is taken over.
"""

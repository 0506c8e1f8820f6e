"""Generated tasks: questions whose answers stand in the text before them.

A task is one document of an exact length in tokens. Its context is code from the run's token store with spans planted
in it; questions follow at the end. Only the answers' tokens are asked for, and every answer stands in the context. A
task is a function of (seed, step, index).
"""

from foveal.train.tasks.mix import KINDS, Mixture, TaskMix

__all__ = ["KINDS", "Mixture", "TaskMix"]

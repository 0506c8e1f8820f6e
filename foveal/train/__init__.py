"""Training: the corpus, the losses, the optimiser and the loop that made the model in the box."""

from foveal.errors import need_torch

need_torch("training")

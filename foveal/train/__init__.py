"""Training: the corpus, the losses, the optimiser and the loop that made the model in the box."""

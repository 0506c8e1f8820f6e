"""Long-context evaluations of a memory, and of any model behind an OpenAI-compatible endpoint (docs/evals.md).

Nothing is measured beside the product. A text is read with `Memory.read`, saved, and asked with `Memory.recall`; many
questions share one reading; what a plain search of the same text would have given stands beside every number.
"""

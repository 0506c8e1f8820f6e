"""What the tests of the network share: random tiny models, and transformers' model with the same weights."""

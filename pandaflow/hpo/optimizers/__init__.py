"""Optimizers behind one protocol: designs of our own, Optuna, Nevergrad, external commands."""

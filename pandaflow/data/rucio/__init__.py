"""Datasets of Rucio: what is in them, and where it is."""

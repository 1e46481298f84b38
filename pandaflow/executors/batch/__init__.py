"""Batch systems as pure functions: command line out, text in, values out."""

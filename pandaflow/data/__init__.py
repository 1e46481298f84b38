"""Results and items of runs: one file a bundle, on any fsspec file system."""

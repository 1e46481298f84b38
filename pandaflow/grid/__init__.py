"""The grid: a pool of bundles that pilots pull from over HTTPS."""

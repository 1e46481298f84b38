"""Jobs through the pool of the grid: bundles out, outcomes back."""

"""The HTML report of a training, its evaluation, and its benchmarks."""

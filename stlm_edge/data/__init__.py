"""Data sets, batches, pseudo-anomalies and the built-in demo."""

"""Evaluation: metrics on labelled images, contact sheets, and several processes that share the work."""

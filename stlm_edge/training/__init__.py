"""Training: recipes, the training step, initial weights, the run folder, and several processes."""

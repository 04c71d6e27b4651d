"""Export: from a checkpoint to the bundle of a target."""

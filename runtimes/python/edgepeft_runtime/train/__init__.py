"""Training: the trainer, the loop, the saved run, its updates."""

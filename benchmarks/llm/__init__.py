"""Language models of 0.1 to 1.7 billion parameters: time and memory of a training step, side by side."""

"""Instructions of a training step on an emulated aarch64, where seconds mean nothing."""

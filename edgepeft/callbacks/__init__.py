"""Callbacks of ``Trainer.fit`` that need packages beside the device runtime: a progress bar, and loggers."""

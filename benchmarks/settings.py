"""What every side of a comparison has in common."""

from __future__ import annotations

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
EPSILON = 1e-8

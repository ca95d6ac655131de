"""Settings of all sides of a comparison."""

from __future__ import annotations

LEARNING_RATE = 1e-4
"""Small: Adam moves by the sign of a gradient that is all rounding; deep networks of random weights amplify that."""
WEIGHT_DECAY = 0.01
EPSILON = 1e-8

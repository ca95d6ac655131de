"""Tests of what the command writes."""

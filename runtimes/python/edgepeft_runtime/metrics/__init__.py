"""Metrics of an evaluation."""

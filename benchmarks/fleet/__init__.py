"""Benchmarks of a fleet's server and of aggregation."""

"""Graphs within a graph: bodies of loops, and branches."""

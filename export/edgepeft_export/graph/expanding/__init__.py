"""Writes nodes as other nodes: the bodies of functions, and what follows from constants."""

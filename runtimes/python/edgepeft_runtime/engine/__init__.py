"""Engines, which run the programs of a bundle."""

"""Shared by all ways of receiving updates: the checks, in one order and without I/O, and the record of a refusal."""

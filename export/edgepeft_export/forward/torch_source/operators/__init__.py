"""Operators that a trace or the exporter has to treat in their own way."""

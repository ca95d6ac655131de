"""More networks of every kind, next to those of ``tests.support.networks``, for the table of methods."""

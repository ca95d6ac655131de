"""More networks of every kind, beside those of ``tests.networks``: what the table of methods is made of."""

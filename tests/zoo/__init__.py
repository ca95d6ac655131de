"""More networks of every kind, beside those of ``tests.support.networks``: what the table of methods is made of."""

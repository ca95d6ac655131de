"""The two halves of a Flower app: what devices run, and what the server runs."""

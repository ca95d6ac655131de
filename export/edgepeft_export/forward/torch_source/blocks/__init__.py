"""Equal blocks of a module: a few of them are traced, and the others are written into the graph as copies of these."""

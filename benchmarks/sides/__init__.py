"""The sides of a comparison: each module runs as a process of its own and imports only what its side needs."""

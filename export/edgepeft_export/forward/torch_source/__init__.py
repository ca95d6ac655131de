"""Forward graphs from torch modules, by torch's exporter."""

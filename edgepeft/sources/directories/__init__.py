"""Models that transformers loads: directories and ``.gguf`` files, by their task."""

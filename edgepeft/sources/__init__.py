"""Load what a user names: directories of Hugging Face, ``.gguf`` files, functions that return a module."""

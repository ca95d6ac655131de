"""Llamas for tests: a tiny one as a .gguf file, and one that learns facts."""

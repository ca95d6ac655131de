"""Adapters of Hugging Face `peft`: which kinds train on a device, and how they are written for it."""

"""The losses of ``torch.nn`` and of causal language models, a file for each, which the registry finds."""

"""Conversations and prompts: chat templates, instructions, and what of a text is learned."""

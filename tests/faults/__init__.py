"""File operations that fail, are cut short, or end in a kill or a power cut: every command, at every operation."""

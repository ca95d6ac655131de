"""Files that others may have written, read with bounded work; files that survive a power cut."""

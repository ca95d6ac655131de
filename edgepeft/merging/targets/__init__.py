"""The formats that updates are merged to, a file for each, which the registry finds."""

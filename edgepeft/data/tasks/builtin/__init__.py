"""The tasks of model directories, a file for each, which the registry finds."""

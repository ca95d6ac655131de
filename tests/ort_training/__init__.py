"""The second engine and the official artifacts, in the environment of the training wheel."""

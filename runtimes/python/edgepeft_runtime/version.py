"""The version of the runtime; it goes into every update."""

VERSION = "0.5.0"

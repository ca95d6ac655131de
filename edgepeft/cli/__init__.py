"""The command ``edgepeft``."""

from edgepeft.cli.app import main

__all__ = ["main"]

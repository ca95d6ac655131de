"""The commands, one module each; ``edgepeft.cli.app`` has their table."""

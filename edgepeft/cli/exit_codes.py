"""Exit codes of the command beyond 0, 1 for an error and 2 for wrong usage."""

INTERRUPTED = 130
"""The command was ended by Ctrl-C, as in shells."""
UNFINISHED = 75
"""The run is saved but not complete: EX_TEMPFAIL of sysexits(3), "the user is invited to retry"."""

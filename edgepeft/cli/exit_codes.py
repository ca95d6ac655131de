"""Exit codes of the command beyond 0, 1 for an error and 2 for wrong usage."""

INTERRUPTED = 130
"""Of a command that Ctrl-C ended, as in shells."""
UNFINISHED = 75
"""Of a run that is saved but not complete: EX_TEMPFAIL of sysexits(3), "the user is invited to retry"."""

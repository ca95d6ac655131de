"""Collection of updates from plain folders (``pull``) or from a fleet's inboxes (``collect``)."""

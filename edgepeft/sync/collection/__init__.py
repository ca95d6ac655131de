"""Collection of updates: out of plain folders (``pull``), or of a fleet's inboxes (``collect``)."""

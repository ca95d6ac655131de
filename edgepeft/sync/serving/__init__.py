"""``edgepeft serve``: rounds over HTTP, and an inbox for updates."""

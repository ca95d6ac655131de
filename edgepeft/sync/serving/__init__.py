"""``edgepeft serve``: published rounds and an inbox for updates over HTTP."""

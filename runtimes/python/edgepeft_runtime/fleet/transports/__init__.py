"""How files travel between a device and its host: by a folder or over HTTP. ``edgepeft.sync`` adds other stores."""

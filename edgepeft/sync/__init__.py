"""Updates on their way from devices to the workstation."""

from edgepeft.sync.pulling import Pulled, Received, Refused, SyncError, pull

__all__ = ["Pulled", "Received", "Refused", "SyncError", "pull"]

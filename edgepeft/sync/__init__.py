"""Exchange between the host and its devices: publish rounds, and collect and verify updates."""

from edgepeft.intake.refusal import Refusal
from edgepeft.sync.closing import Closing, closing
from edgepeft.sync.collection.collecting import Collected, accepted, collect
from edgepeft.sync.collection.pulling import Pulled, Received, pull
from edgepeft.sync.errors import SyncError
from edgepeft.sync.keys import Device, HostKey, Keys
from edgepeft.sync.ledger import Entry, Ledger
from edgepeft.sync.publishing import Terms, mirror, publish, rollback
from edgepeft.sync.reporting import Status, status
from edgepeft.sync.workspace import Workspace

__all__ = [
    "Closing",
    "Collected",
    "Device",
    "Entry",
    "HostKey",
    "Keys",
    "Ledger",
    "Pulled",
    "Received",
    "Refusal",
    "Status",
    "SyncError",
    "Terms",
    "Workspace",
    "accepted",
    "closing",
    "collect",
    "mirror",
    "publish",
    "pull",
    "rollback",
    "status",
]

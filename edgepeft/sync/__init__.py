"""Updates on their way from devices to the workstation, and rounds on their way out."""

from edgepeft.sync.closing import Closing, closing
from edgepeft.sync.collecting import Collected, Refusal, accepted, collect
from edgepeft.sync.errors import SyncError
from edgepeft.sync.home import HostHome
from edgepeft.sync.keys import Device, HostKey, Keys
from edgepeft.sync.ledger import Entry, Ledger
from edgepeft.sync.publishing import Terms, mirror, publish, rollback
from edgepeft.sync.pulling import Pulled, Received, Refused, pull
from edgepeft.sync.reporting import Status, status

__all__ = [
    "Closing",
    "Collected",
    "Device",
    "Entry",
    "HostHome",
    "HostKey",
    "Keys",
    "Ledger",
    "Pulled",
    "Received",
    "Refusal",
    "Refused",
    "Status",
    "SyncError",
    "Terms",
    "accepted",
    "closing",
    "collect",
    "mirror",
    "publish",
    "pull",
    "rollback",
    "status",
]

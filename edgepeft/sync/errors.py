"""Errors of the host's side of a fleet."""

from __future__ import annotations

from edgepeft_runtime.errors import EdgepeftError, FleetError, UpdateError


class SyncError(EdgepeftError):
    """A workspace is incomplete, or was changed from outside."""


class NoRound(SyncError, code="no-round"):
    """The workspace has published no round. Run `edgepeft publish` first."""


class NoSuchRound(SyncError, code="no-such-round"):
    """The round does not exist, or cannot be used."""


class DamagedWorkspace(SyncError, code="damaged-workspace"):
    """A file of the workspace is not what was published. Restore it from a copy."""


class KeyExists(SyncError, code="key-exists"):
    """The workspace has a host key already. Start another campaign in another workspace."""


class NoKey(SyncError, code="no-key"):
    """The workspace has no host key. Run `edgepeft keys new`."""


class DamagedKey(SyncError, code="damaged-key"):
    """A key file of the workspace is damaged. Restore it from a copy."""


class DeviceExists(SyncError, code="device-exists"):
    """A device of this name is registered already. Choose another name."""


class BadLedger(SyncError, code="bad-ledger"):
    """The ledger is damaged. Restore it from a copy."""


class ForeignBundle(SyncError, code="foreign-bundle"):
    """The workspace belongs to another bundle. Use another workspace."""


class TooFewDevices(SyncError, code="too-few-devices"):
    """Too few devices have delivered to close the round. Pull again later."""


class CannotListen(SyncError, code="cannot-listen"):
    """The server cannot listen on the address or port. Choose another one."""


class BadCertificate(SyncError, code="bad-certificate"):
    """The certificate or its key cannot be used. Pass both as PEM, without a password."""


class BadLink(SyncError, code="bad-link"):
    """A link cannot connect a web page with the server. Check the addresses, and how the device signs."""


class BadName(FleetError, code="bad-name"):
    """A name of a device, campaign, folder or file does not have the form that the SPEC requires."""


class StrayFile(FleetError, code="stray-file"):
    """A file or folder does not belong to the layout of an inbox."""


class RevokedDevice(FleetError, code="revoked-device"):
    """The device is revoked, so its updates are refused."""


class BlockedDevice(FleetError, code="blocked-device"):
    """The device has broken the rules, so its updates are refused."""


class WrongAddress(FleetError, code="wrong-address"):
    """A sidecar names another round, device or file than the one it came with."""


class FutureUpdate(UpdateError, code="future-update"):
    """An update names a round that was not published."""


class Equivocation(UpdateError, code="equivocation"):
    """A device has signed two updates under one sequence number, so it is blocked."""


class Replayed(UpdateError, code="replayed"):
    """The same update was accepted before under another name."""


class ExpiredRound(UpdateError, code="expired-round"):
    """The round of an update has expired."""


class CheckpointWithoutBundle(UpdateError, code="checkpoint-without-bundle"):
    """A checkpoint of ONNX Runtime Training needs its bundle. Name it with --bundle."""


class NominalCheckpoint(UpdateError, code="nominal-checkpoint"):
    """The checkpoint has names and no values. Send the one with values."""


class ForeignCheckpoint(UpdateError, code="foreign-checkpoint"):
    """The checkpoint does not say which base and adapter it was trained from."""

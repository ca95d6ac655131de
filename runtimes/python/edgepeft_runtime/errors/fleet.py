"""Errors of a fleet: signed files, devices, remotes."""

from __future__ import annotations

from edgepeft_runtime.errors.base import EdgepeftError, FleetError

_HINT = "fetch it again; if the error persists, it was written by another version of edgepeft."


class RemoteError(EdgepeftError):
    """A remote that cannot be reached, or refuses a request."""


class NoSuchRemote(RemoteError, code="no-such-remote"):
    """An address or folder is not a remote that can be reached. Correct the address, or mount the folder."""


class RemoteUnreachable(RemoteError, code="remote-unreachable"):
    """The connection to a remote failed. Check the address and the network, and try again."""


class CertificateNotTrusted(RemoteError, code="certificate-not-trusted"):
    """The certificate of a remote is not trusted. Give it with --ca-file, and check the clock."""


class NoTls(RemoteError, code="no-tls"):
    """A remote does not speak TLS on this port. Check the port and the scheme of the address."""


class RemoteRefused(RemoteError, code="remote-refused"):
    """A remote answered a request with an error. Try again later."""


class NotAllowed(RemoteError, code="not-allowed"):
    """A remote did not accept the token of this device. Check that the device is registered."""


class NoSuchFile(RemoteError, code="no-such-file"):
    """A remote does not have a file. Check the address, and publish a round there."""


class IncompleteFile(RemoteError, code="incomplete-file"):
    """A remote sent fewer bytes of a file than it has, or than it should have. Try again later."""


class CannotReadRemote(RemoteError, code="cannot-read-remote"):
    """A folder of a remote cannot be listed. Check the permissions."""


class MissingExtra(EdgepeftError, code="missing-extra"):
    """An optional package is not installed. The hint says how to install it."""


class MalformedFile(FleetError):
    """A file of a fleet that is not of the known format."""

    def __init__(self, message: str, context: str, hint: str | None = _HINT) -> None:
        super().__init__(message, context=context, hint=hint)


class BadKey(MalformedFile, code="bad-key"):
    """A key file is not of the known format."""


class BadTrust(MalformedFile, code="bad-trust"):
    """The record of the rounds that this device trusts is damaged."""


class BadLatest(MalformedFile, code="bad-latest"):
    """The file that names the latest round is not of the known format."""


class BadRound(MalformedFile, code="bad-round"):
    """The description of a round is not of the known format, or contradicts itself."""


class BadIdentity(MalformedFile, code="bad-identity"):
    """The identity of this device is not of the known format. Bring the file from the host again."""


class BadSidecar(MalformedFile, code="bad-sidecar"):
    """The sidecar of an update is not of the known format."""


class BadSignature(MalformedFile, code="bad-signature"):
    """A signature is missing, malformed or not that of the expected key. Do not use what it belongs to."""


class WrongHash(FleetError, code="wrong-hash"):
    """A file does not have the hash that was signed or named for it. Fetch it again."""


class ForeignCampaign(FleetError, code="foreign-campaign"):
    """A file, device or directory belongs to another campaign. Check the address."""


class ForeignRound(FleetError, code="foreign-round"):
    """A round belongs to another bundle. Use the bundle of this campaign."""


class RoundGoesBack(FleetError, code="round-goes-back"):
    """A remote offers an older round than this device has joined. The remote is out of date."""


class ExpiredLatest(FleetError, code="expired-latest"):
    """The latest round has expired: a newer one may be withheld. Check the clock, or publish again."""


class UnhealthyAdapter(FleetError, code="unhealthy-adapter"):
    """The adapter of a round does not work on this device. The device keeps the one it has."""


class UnhealthyBundle(FleetError, code="unhealthy-bundle"):
    """The bundle of a round does not compute finite outputs on this device. The device keeps the one it has."""


class RoundDiffers(FleetError, code="round-differs"):
    """A remote has another version of a round than this device was given. Its history was rewritten."""


class UnknownRound(FleetError, code="unknown-round"):
    """An update was not trained from a round that this device has joined."""


class UnknownDevice(FleetError, code="unknown-device"):
    """No device of this name is registered. `edgepeft status` lists them."""


class NoIdentity(FleetError, code="no-identity"):
    """The identity of this device cannot be read. Bring the file that `edgepeft keys add` wrote."""


class DamagedDeviceDirectory(FleetError, code="damaged-device-directory"):
    """The device directory is damaged. Register the device again."""


class NoWholeSlot(FleetError, code="no-whole-slot"):
    """No slot has a whole round. Run `edgepeft join` to fetch it again."""


class NotJoined(FleetError, code="not-joined"):
    """This device has not joined a round. Run `edgepeft join` first."""

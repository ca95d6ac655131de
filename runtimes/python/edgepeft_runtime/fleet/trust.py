"""Verify what a remote offers: bytes in, rules in order, verdict out, without files and network.

The rules are those of the SPEC, section 8.4, under their numbers there; the first that fails determines the code.

====  =====================================================================  ==========================================
1.1   ``latest.json`` is signed by the host's key                             ``bad-signature``
1.2   it has the right form, and belongs to the campaign                      ``bad-latest``, ``foreign-campaign``
1.3   its round is not older than any that was switched to                    ``round-goes-back``
1.4   no other round has had its number                                       ``round-differs``
1.5   it has not expired, unless the clock is before ``created``              ``expired-latest``
1.6   ``round.json`` has the hash in ``latest.json``, and the right form      ``wrong-hash``, ``bad-round``
1.7   it follows the round before, where the device has that one              ``round-differs``
1.8   the manifest of a bundle that is fetched has the hash in ``round.json``  ``too-large``, ``wrong-hash``
1.9   it is one, and none of its files lies outside the bundle                ``bad-manifest``, ``path-escape``
1.10  base and tensors of the round are those of the bundle                   ``foreign-round``
1.11  each file of the bundle has the size and hash in the manifest           ``too-large``, ``wrong-hash``
1.12  the adapter is no larger than one of the bundle, and has its hash       ``too-large``, ``wrong-hash``
====  =====================================================================  ==========================================

Rules 1.9 and 1.11 are applied as the files arrive, by ``edgepeft_runtime.fleet.fetching``, with ``check_hash``.
Then the bundle must compute finite outputs with the adapter (1.13), which ``edgepeft_runtime.fleet.health`` checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import FileEntry, ParameterSpec
from edgepeft_runtime.errors import (
    BadRound,
    BadTrust,
    ExpiredLatest,
    FleetError,
    ForeignCampaign,
    ForeignRound,
    RoundDiffers,
    RoundGoesBack,
    TooLarge,
    WrongHash,
)
from edgepeft_runtime.files.schema import BadFields, Natural, Sha256, one_of
from edgepeft_runtime.fleet import rounds, signatures
from edgepeft_runtime.fleet.reading import Name, file_bytes, read_file
from edgepeft_runtime.fleet.rounds import Latest, LatestSignatures, Round, RoundNumber

TRUSTED = "trusted.json"
SLOTS = ("slot-a", "slot-b")
_FORMAT = "edgepeft-trusted"


@dataclass(frozen=True)
class Slot:
    """A slot, and the round that was verified and put into it."""

    name: Annotated[str, one_of(SLOTS)]
    round: RoundNumber
    round_sha256: Sha256
    bundle: Sha256 | None = None
    """The hash of the manifest of its bundle, where that one was fetched too."""


@dataclass(frozen=True)
class Trusted:
    """The rounds that a device has verified so far, as ``trusted.json`` records them.

    Args:
        campaign: the fleet's name.
        round: the highest round that was ever switched to; ``round_sha256`` is the hash of its ``round.json``.
        current: the slot in use.
        previous: the slot to fall back to.
        starts: how often training began with ``current`` since it last made a good step.
        failed: the round with which training began too often in vain; the device does not switch to it again.
    """

    campaign: Name
    round: RoundNumber
    round_sha256: Sha256
    current: Slot
    previous: Slot | None = None
    starts: Natural = 0
    failed: str | None = None

    @classmethod
    def from_bytes(cls, content: bytes) -> Trusted:
        """Parse ``trusted.json``; raises ``FleetError`` (``bad-trust``)."""
        try:
            return read_file(cls, content, TRUSTED, _FORMAT)
        except BadFields as wrong:
            raise BadTrust(wrong.message, wrong.context) from None

    def to_bytes(self) -> bytes:
        """Return the canonical form."""
        return file_bytes(self, _FORMAT)


@dataclass(frozen=True)
class Verifier:
    """The rules, for a device that knows its campaign, the host's key and what it has verified before."""

    campaign: str
    host_key: bytes
    trusted: Trusted | None

    def latest(self, content: bytes, signed: bytes, now: float) -> tuple[Latest, str | None]:
        """Apply rules 1.1 to 1.5.

        Args:
            content: ``latest.json``.
            signed: ``latest.sig``.
            now: seconds since 1970.

        Returns:
            The parsed file, and what could not be verified, for people (``None``: nothing).
        """
        LatestSignatures.from_bytes(signed).check(content, self.host_key)
        latest = Latest.from_bytes(content)
        if latest.campaign != self.campaign:
            raise _foreign_campaign("The remote", latest.campaign, self.campaign, "check the address.")
        if self.trusted is not None:
            _check_order(latest, self.trusted)
        return latest, _check_age(latest, now)

    def round(self, content: bytes, latest: Latest) -> Round:
        """Apply rules 1.6 and 1.7 to ``round.json``, and return it parsed."""
        check_hash(rounds.ROUND_FILE, latest.round_sha256, signatures.sha256(content))
        round_ = Round.from_bytes(content)
        if (round_.campaign, round_.round) != (latest.campaign, latest.round):
            raise BadRound("round.json is of another round.", f"{round_.campaign}, round {round_.round}")
        before = self.trusted
        if before is not None and round_.round == before.round + 1 and round_.previous != before.round_sha256:
            raise _rewritten(before.round, before.round_sha256, str(round_.previous))
        return round_


def check_bundle(round_: Round, manifest: Manifest) -> None:
    """Apply rule 1.10: refuse a round of another base or with other tensors than the bundle's."""
    if round_.base_sha256 != manifest.base_sha256:
        context = f"base of the round {round_.base_sha256}\nbase of the bundle {manifest.base_sha256}"
    elif round_.tensors != manifest.parameters:
        context = f"the tensors that train: {_difference(round_.tensors, manifest.parameters)}"
    else:
        return
    raise ForeignRound(
        "The round belongs to another bundle.",
        context=context,
        hint="give --bundle the bundle of this campaign, or let `edgepeft publish --with-bundle` send it.",
    )


def check_size(entry: FileEntry, most: int) -> None:
    """Apply rule 1.12 before the adapter is fetched: refuse one that is larger than one of the bundle."""
    if entry.bytes > most:
        context = f"{entry.bytes} bytes; at most {most} fit this bundle"
        raise TooLarge("The adapter is larger than one of this bundle.", context=context, hint=None)


def check_hash(name: str, expected: str, digest: str) -> None:
    """Refuse a file whose hash is not the one that was signed (``wrong-hash``)."""
    if digest != expected:
        raise WrongHash(
            f"{name} does not have the hash that the host signed.",
            context=f"expected SHA-256 {expected}, found {digest}",
            hint="try again later, it may be half copied; if it stays so, do not use this remote.",
        )


def _check_order(latest: Latest, trusted: Trusted) -> None:
    """Apply rules 1.3 and 1.4: no device goes back, and no round is replaced by another of its number."""
    if trusted.campaign != latest.campaign:
        hint = "use another device directory."
        raise _foreign_campaign("The device directory", trusted.campaign, latest.campaign, hint)
    if latest.round < trusted.round:
        raise RoundGoesBack(
            f"The remote is at round {latest.round}; this device was at round {trusted.round} already.",
            context=f"at {latest.round_sha256}",
            hint="the remote is out of date; a host that withdraws a round publishes a new one.",
        )
    if latest.round == trusted.round and latest.round_sha256 != trusted.round_sha256:
        raise _rewritten(latest.round, trusted.round_sha256, latest.round_sha256)


def _check_age(latest: Latest, now: float) -> str | None:
    """Apply rule 1.5; where the clock cannot be right, say so instead."""
    if now < latest.created:
        return "the clock is earlier than the round, so its expiry could not be checked."
    if latest.expires is not None and now >= latest.expires:
        raise ExpiredLatest(
            f"Round {latest.round} expired: a newer one may have been withheld from this device.",
            context=f"expired {now - latest.expires:.0f} s ago, by this device's clock",
            hint="check the clock, or publish again on the host. The device keeps its current adapter.",
        )
    return None


def _foreign_campaign(what: str, its: str, ours: str, hint: str) -> FleetError:
    context = f"its campaign {its}, expected {ours}"
    return ForeignCampaign(f"{what} belongs to another campaign.", context=context, hint=hint)


def _rewritten(number: int, ours: str, theirs: str) -> FleetError:
    return RoundDiffers(
        f"The remote has another round {number} than this device was given.",
        context=f"here {ours}\nthere {theirs}",
        hint="inform the host that its history was rewritten.",
    )


def _difference(first: Sequence[ParameterSpec], second: Sequence[ParameterSpec]) -> str:
    odd = [spec.name for spec in (*first, *second) if (spec in first) != (spec in second)]
    return f"{', '.join(sorted(set(odd))[:5])} differ" if odd else "their order differs"

"""The desired file and its signature: read, put in their places, admitted. Every way in comes through here."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from agent.desired.identity import digest_of
from agent.desired.state import Parsed
from agent.errors import InvalidError, PolicyError, UsageError, Violation
from agent.host.documents import read, read_signature
from agent.host.store import Identity, Store, identity, write
from agent.reconcile import policy
from agent.reconcile.generation import Generation
from agent.settings import Settings

STALE_REMEDY = "set a higher serial; `agent rollback` puts an earlier state back"
MANAGER_REMEDY = "if this one shall take over, `agent apply FILE --force` or `agent sync --force` says so"
EMPTY_REMEDY = "if this is intended, write `allow_empty: true` at the top level of the document"


@frozen
class Intake:
    """The desired file of this host, and what is accepted into it."""

    settings: Settings
    """of this host"""
    store: Store
    """of this host"""

    @property
    def file(self) -> Path:
        """Where the desired state stands."""
        return self.settings.desired

    @property
    def signature_file(self) -> Path:
        """What stands beside it where documents are signed."""
        return self.file.with_name(f"{self.file.name}.sig")

    def desired(self) -> bytes | InvalidError:
        """The desired file, or why it cannot be read: what is live must be kept serving all the same."""
        try:
            return read(self.file, self.settings)
        except InvalidError as error:
            return error
        except UsageError as error:
            return InvalidError(str(self.file), (Violation((), str(error)),))

    def identities(self) -> tuple[Identity | None, Identity | None]:
        """Which files stand in the places of the document and its signature."""
        return identity(self.file), identity(self.signature_file)

    def put(self, data: bytes, signature: bytes) -> Identity:
        """Put a document in its place, and its signature (b"": none is needed here). The caller holds the lock.

        The signature first: a reader between the two finds a document that was accepted already. Returns the identity
        of the file. Raises StoreError, UsageError.
        """
        if signature:
            write(self.signature_file, signature, mode=0o640)
        try:
            target = self.file.resolve()  # a link stays a link
            target.parent.mkdir(parents=True, exist_ok=True)
            mode = target.stat().st_mode & 0o777 if target.exists() else 0o640
        except (OSError, RuntimeError) as error:  # a link that leads to itself is a RuntimeError
            raise UsageError(f"cannot write {self.file}: {error}") from None
        return write(target, data, mode=mode)

    def restore(self, data: bytes | None, signature: bytes) -> None:
        """Put back what stood there before a `put`; None: nothing did. The caller holds the lock.

        Raises StoreError, UsageError.
        """
        try:
            if data is None:
                self.file.resolve().unlink(missing_ok=True)
            if not signature:
                self.signature_file.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"cannot take {self.file} back: {error.strerror}") from None
        if data is not None:
            self.put(data, signature)

    @property
    def signed(self) -> bool:
        """Whether documents must be."""
        return bool(self.settings.sync.allowed_signers)

    def verify(self, data: bytes, signature: bytes | None = None) -> str | None:
        """Check the signature of a document, where documents are signed; before anything parses the document.

        `signature` None: the one beside the desired file. Raises PolicyError. Returns the signer, "" where documents
        are not signed, and None for what is no request: what is live already needs no signature to stay live, and then
        nothing shows how it came there.
        """
        if not self.signed:
            return ""
        live = self.store.live()
        if signature is None and live is not None and live.digest == digest_of(data):
            return None
        from agent.host import signature as signatures  # only where documents are signed

        given = read_signature(self.file) if signature is None else signature
        return signatures.check(data, given, Path(self.settings.sync.allowed_signers))

    def admit(self, parsed: Parsed, live: Generation | None, *, force: bool = False) -> None:
        """Check a valid document against what is live: its serial, its manager, and whether it would end all service.

        One rule for every path in (the file, `apply`, `sync`, `plan`); a rollback goes without. `force`: another
        manager takes over. Raises PolicyError.
        """
        if lower := policy.lower(parsed, live):
            raise PolicyError(lower, remedy=STALE_REMEDY)
        if not force and (another := policy.another_manager(parsed, live)):
            raise PolicyError(another, remedy=MANAGER_REMEDY)
        if self.signed:
            # Not only what is live: a rollback must not open the door to all that was signed since.
            highest = self.store.serial()
            for newest in (
                policy.newest(live),
                policy.Newest(digest=highest[1], serial=highest[0], how="was taken before") if highest else None,
            ):
                if stale := policy.stale(parsed, newest):
                    raise PolicyError(stale, remedy=STALE_REMEDY)
        if empty := policy.empty(parsed, live):
            raise PolicyError(empty, remedy=EMPTY_REMEDY)

    def record_serial(self, digest: str, serial: int | None) -> None:
        """A signed document has been live: nothing older is taken from now on, whatever a rollback puts back."""
        highest = self.store.serial() if self.signed else None
        if self.signed and serial is not None and (highest is None or serial > highest[0]):
            self.store.set_serial(serial, digest)

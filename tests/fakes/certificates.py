"""Certificates of a CA that exists for a test."""

from datetime import datetime
from pathlib import Path

import trustme


class Certificates:
    """A CA, and what it has issued, as files in a directory."""

    def __init__(self, directory: Path, authority: str = "ca") -> None:
        """Make the CA."""
        self._directory = directory
        self._authority = trustme.CA()
        self.ca = directory / f"{authority}.pem"
        self._authority.cert_pem.write_to_path(self.ca)

    def issue(self, name: str, *identities: str, not_after: datetime | None = None) -> tuple[Path, Path]:
        """Write NAME.pem and NAME.key, a certificate for these names and addresses; return both paths."""
        issued = self._authority.issue_cert(*identities, not_after=not_after)
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return certificate, key

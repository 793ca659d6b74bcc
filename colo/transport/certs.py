"""Certificates for a link over TCP: an authority of one's own, and one certificate a host.

Both ends of a link show a certificate of the same private authority (mutual TLS 1.3, RFC 8446), and
the one that connects also checks that the name or address it dialled stands in the other's
certificate (RFC 9525).  No public authority is trusted: whoever holds a certificate of this one may
be a peer, and nobody else.

A directory holds, in PEM, keys with mode 0600::

    ca.pem  ca-key.pem         the authority; ca-key.pem is needed to make certificates only
    NAME.pem  NAME-key.pem     a node's, for the host NAME (a DNS name or an IP address)

A host needs ``ca.pem`` and its own two files.  Keys are ECDSA on P-256 (FIPS 186-5), certificates
X.509 v3 (RFC 5280) made by the `cryptography` package.

There is no revocation: to shut a host out, make a new authority.  Keys have no pass phrase, because a
node starts unattended; whoever reads the directory is a peer.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vmm.errors import ConfigError

AUTHORITY = "ca"
AUTHORITY_DAYS = 3650
NODE_DAYS = 825
"""As long as any TLS implementation accepts."""
BACKDATED_DAYS = 1
"""Clocks of two hosts differ, and time zones are set wrongly."""
KEY_SUFFIX = "-key"
DNS_NAME = re.compile(r"(?=.{1,253}$)(?!-)[A-Za-z0-9-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
COMMON_NAME_MAX = 64
"""Characters (RFC 5280, ub-common-name); the full name is in the subjectAltName."""

Key = ec.EllipticCurvePrivateKey


class Credentials:
    """What a node shows and whom it believes: two TLS contexts from three files."""

    __slots__ = ("client", "directory", "name", "server")

    def __init__(self, directory: str | Path, name: str) -> None:
        """ConfigError names the file that is missing, unreadable or wrong, and the remedy."""
        self.directory, self.name = Path(directory), name
        check_name(name)
        files = [self.directory / f"{each}.pem" for each in (AUTHORITY, name, name + KEY_SUFFIX)]
        for file in files:
            _check_readable(file, self._remedy())
        if files[2].stat().st_mode & 0o077:
            raise ConfigError(f"TLS key {files[2]}: others may read it; chmod 600 {files[2]}")
        self._check_dates(files[1])
        self.server = self._context(ssl.PROTOCOL_TLS_SERVER, files)
        self.client = self._context(ssl.PROTOCOL_TLS_CLIENT, files)

    def _context(self, side: ssl._SSLMethod, files: list[Path]) -> ssl.SSLContext:
        authority, certificate, key = files
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.check_hostname = side == ssl.PROTOCOL_TLS_CLIENT
        try:
            context.load_verify_locations(authority)
        except (ssl.SSLError, OSError) as exc:
            raise ConfigError(f"TLS authority {authority}: {_why(exc)}; {self._remedy()}") from None
        try:
            context.load_cert_chain(certificate, key)
        except (ssl.SSLError, OSError) as exc:
            raise ConfigError(
                f"TLS certificate {certificate} with {key}: {_why(exc)}; {self._remedy()}"
            ) from None
        return context

    def _check_dates(self, file: Path) -> None:
        """OpenSSL would find out too, but only at the other end."""
        try:
            certificate = x509.load_pem_x509_certificate(file.read_bytes())
        except ValueError as exc:
            raise ConfigError(f"TLS certificate {file}: {exc}; {self._remedy()}") from None
        if certificate.not_valid_after_utc <= datetime.now(UTC):
            until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
            raise ConfigError(f"TLS certificate {file}: it ran out on {until}; {self._remedy()}")

    def _remedy(self) -> str:
        return f"make it where the authority's key is: colo certs {self.directory} --host {self.name}"


def has_authority(directory: str | Path) -> bool:
    """Whether either half of one is there: that is what must not be overwritten."""
    return any((Path(directory) / f"{each}.pem").exists() for each in (AUTHORITY, AUTHORITY + KEY_SUFFIX))


def make_authority(directory: str | Path) -> list[Path]:
    """A new authority; the files it made.  ConfigError if there is one."""
    directory = Path(directory)
    if has_authority(directory):
        raise ConfigError(
            f"{directory} has an authority already; with another, its certificates would be worthless:"
            " add hosts to it with --host, or choose a new directory"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "colo authority")])
    certificate = (
        _certificate(name, name, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _write(directory, AUTHORITY, key, certificate)


def make_certificate(directory: str | Path, name: str, hosts: list[str] | None = None) -> list[Path]:
    """A certificate for a node, good for the DNS names and addresses in ``hosts`` (by default its name).

    The files it made.  A certificate of that name is replaced, which is how one is renewed.
    """
    directory = Path(directory)
    check_name(name)
    authority_key, authority = _load_authority(directory)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:COMMON_NAME_MAX])])
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _certificate(subject, authority.subject, key, NODE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName([_host(each) for each in hosts or [name]]), critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return _write(directory, name, key, certificate)


def _certificate(subject: x509.Name, issuer: x509.Name, key: Key, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=BACKDATED_DAYS))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        check_name(text)
        return x509.DNSName(text)


def check_name(name: str) -> None:
    """A name becomes a file name, so nothing but a host's name or address will do."""
    try:
        ipaddress.ip_address(name)
        return
    except ValueError:
        good = DNS_NAME.fullmatch(name) is not None
    if not good or name == AUTHORITY or name.endswith(KEY_SUFFIX):
        raise ConfigError(
            f"host {name!r}: expected a DNS name or an IP address; it may be neither {AUTHORITY!r} nor end in"
            f" {KEY_SUFFIX!r}, because files are named for it"
        )


def _load_authority(directory: Path) -> tuple[Key, x509.Certificate]:
    key_file, file = directory / f"{AUTHORITY}{KEY_SUFFIX}.pem", directory / f"{AUTHORITY}.pem"
    remedy = (
        f"go where the authority was made, or make a new one in an empty directory: colo certs {directory}"
    )
    for each in (file, key_file):
        _check_readable(each, remedy)
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"TLS authority {file}, {key_file}: {exc}; {remedy}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"TLS authority: {key_file} is not the key of {file}; {remedy}")
    return key, certificate


def _check_readable(file: Path, remedy: str) -> None:
    try:
        with file.open("rb"):
            return
    except OSError as exc:
        raise ConfigError(f"TLS: {file}: {exc.strerror}; {remedy}") from None


def _why(exc: OSError) -> str:
    reason = getattr(exc, "reason", None) or exc.strerror or str(exc)
    return str(reason).replace("_", " ").lower()


def _write(directory: Path, name: str, key: Key, certificate: x509.Certificate) -> list[Path]:
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    contents = {
        f"{name}{KEY_SUFFIX}.pem": key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain),
        f"{name}.pem": certificate.public_bytes(encoding),
    }
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file, content in contents.items():
            _replace(directory / file, content)
    except OSError as exc:
        raise ConfigError(
            f"certificates in {directory}: {exc.strerror}; choose a directory of yours"
        ) from None
    return [directory / f"{name}.pem", directory / f"{name}{KEY_SUFFIX}.pem"]


def _replace(file: Path, content: bytes) -> None:
    """Whole or not at all, and never readable by others."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)

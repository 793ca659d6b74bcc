"""Certificates, judged by OpenSSL, and the TLS that a link makes of them."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import ssl
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from colo.cli import certs as cli_certs
from colo.errors import PeerLost
from colo.messages import Channel
from colo.transport import address as addresses
from colo.transport import certs
from colo.transport.address import Address
from colo.transport.certs import Credentials
from colo.transport.dial import dial
from tests.link.support import World, authority, hello, run, shut
from vmm.errors import ConfigError

ANYWHERE = Address.parse("tcp:localhost:0")


def arguments(directory: Path, *hosts: str, as_json: bool = False) -> argparse.Namespace:
    return argparse.Namespace(directory=str(directory), host=list(hosts) or None, json=as_json)


async def refused(listening: Credentials, dialling: Credentials, host: str = "localhost") -> tuple[str, str]:
    """What the dialling side says and what the listening one; the listener must go on with its own kind."""
    world = World(ANYWHERE, listening)
    async with world.listener() as listener:
        intruder = World(Address(host=host, port=listener.address.port), dialling)
        with pytest.raises(PeerLost) as caught:
            await dial(intruder.address, hello(), intruder.credentials)
        near, far = await asyncio.gather(world.dial(listener), listener.accept())
        await shut(near, far)
        assert listener.turned_away == 1
        return str(caught.value), listener.last_turned_away


def test_files_are_private(certificates: Path) -> None:
    names = {file.name for file in certificates.iterdir()}
    assert names == {"ca.pem", "ca-key.pem", "localhost.pem", "localhost-key.pem"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in certificates.iterdir()} == {0o600}


def test_openssl_accepts_them_for_both_purposes(tmp_path: Path, tool: Callable[[str], str]) -> None:
    authority(tmp_path, "node-a.example", "192.0.2.7", "2001:db8::7")
    ca = ["-x509_strict", "-CAfile", f"{tmp_path}/ca.pem"]
    for name, check in (
        ("node-a.example", ["-verify_hostname", "node-a.example"]),
        ("192.0.2.7", ["-verify_ip", "192.0.2.7"]),
        ("2001:db8::7", ["-verify_ip", "2001:db8::7"]),
    ):
        for purpose in ("sslserver", "sslclient"):
            words = [tool("openssl"), "verify", *ca, "-purpose", purpose, *check, f"{tmp_path}/{name}.pem"]
            done = subprocess.run(words, check=False, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, "")


def test_an_authority_is_never_overwritten(tmp_path: Path) -> None:
    authority(tmp_path)
    before = (tmp_path / "ca.pem").read_bytes(), (tmp_path / "ca-key.pem").read_bytes()
    with pytest.raises(ConfigError, match="has an authority already"):
        certs.make_authority(tmp_path)
    (tmp_path / "ca.pem").unlink()
    with pytest.raises(ConfigError, match="has an authority already"):
        certs.make_authority(tmp_path)
    assert (tmp_path / "ca-key.pem").read_bytes() == before[1]


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", "ca", "x-key", "a b", "-a", "a" * 64, "*", "a\n", ".a"]
)
def test_a_name_that_is_no_host_is_refused(tmp_path: Path, name: str) -> None:
    authority(tmp_path)
    with pytest.raises(ConfigError, match="host"):
        certs.make_certificate(tmp_path, name)
    assert len(list(tmp_path.iterdir())) == 2


def test_certificates_come_from_the_authoritys_own_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.pem: No such file"):
        certs.make_certificate(tmp_path, "localhost")
    authority(tmp_path)
    other = authority(tmp_path / "other")
    (other / "ca-key.pem").replace(tmp_path / "ca-key.pem")
    with pytest.raises(ConfigError, match=r"ca-key\.pem is not the key of .*ca\.pem"):
        certs.make_certificate(tmp_path, "localhost")
    (tmp_path / "ca-key.pem").write_text("what?")
    with pytest.raises(ConfigError, match=r"ca-key\.pem"):
        certs.make_certificate(tmp_path, "localhost")


# Credentials


def test_a_host_needs_three_files(tmp_path: Path, certificates: Path) -> None:
    for name in ("ca.pem", "localhost.pem", "localhost-key.pem"):
        with pytest.raises(ConfigError, match=rf"{name}: No such file.*colo certs .* --host localhost"):
            Credentials(tmp_path, "localhost")
        (tmp_path / name).write_bytes((certificates / name).read_bytes())
        (tmp_path / name).chmod(0o600)
    Credentials(tmp_path, "localhost")


def test_files_that_do_not_do_are_named(tmp_path: Path) -> None:
    authority(tmp_path, "one", "two")
    with pytest.raises(ConfigError, match="host"):
        Credentials(tmp_path, "../one")
    (tmp_path / "one-key.pem").chmod(0o644)
    with pytest.raises(ConfigError, match=r"one-key\.pem: others may read it; chmod 600"):
        Credentials(tmp_path, "one")
    (tmp_path / "one-key.pem").chmod(0o600)
    (tmp_path / "two.pem").replace(tmp_path / "one.pem")
    with pytest.raises(ConfigError, match=r"one\.pem with .*one-key\.pem: key values mismatch"):
        Credentials(tmp_path, "one")
    (tmp_path / "one.pem").write_text("what?")
    with pytest.raises(ConfigError, match=r"one\.pem.*colo certs"):
        Credentials(tmp_path, "one")
    authority(tmp_path / "other", "one")
    (tmp_path / "other/ca.pem").write_text("what?")
    with pytest.raises(ConfigError, match=r"TLS authority .*ca\.pem"):
        Credentials(tmp_path / "other", "one")


def test_a_certificate_that_ran_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certs, "BACKDATED_DAYS", 30)
    monkeypatch.setattr(certs, "NODE_DAYS", -10)
    authority(tmp_path, "localhost")
    with pytest.raises(
        ConfigError, match=r"localhost\.pem: it ran out on 20.*colo certs .* --host localhost"
    ):
        Credentials(tmp_path, "localhost")
    monkeypatch.setattr(certs, "NODE_DAYS", 10)
    certs.make_certificate(tmp_path, "localhost")
    Credentials(tmp_path, "localhost")


# Links


def test_another_authoritys_node_gets_nowhere(tmp_path: Path, certificates: Path) -> None:
    ours, theirs = (
        Credentials(certificates, "localhost"),
        Credentials(authority(tmp_path, "localhost"), "localhost"),
    )
    said, _ = run(refused(ours, theirs))
    assert "TLS: the peer's certificate does not do" in said


def test_a_node_whose_authority_is_believed_by_one_side_only_gets_nowhere(
    tmp_path: Path, certificates: Path
) -> None:
    """The dialling side believes the listener; the listener still asks for a certificate of its own kind."""
    ours = Credentials(certificates, "localhost")
    other = Credentials(authority(tmp_path, "localhost"), "localhost")
    other.client.load_verify_locations(certificates / "ca.pem")
    said, reported = run(refused(ours, other))
    assert "perhaps it does not accept this node's certificate" in said
    assert "TLS: the peer's certificate does not do" in reported


def test_a_client_without_a_certificate_gets_nowhere(certificates: Path) -> None:
    ours, bare = Credentials(certificates, "localhost"), Credentials(certificates, "localhost")
    bare.client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.client.load_verify_locations(certificates / "ca.pem")
    assert "peer did not return a certificate" in run(refused(ours, bare))[1]


def test_older_tls_gets_nowhere(certificates: Path) -> None:
    ours, old = Credentials(certificates, "localhost"), Credentials(certificates, "localhost")
    old.client.minimum_version = ssl.TLSVersion.TLSv1_2
    old.client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert "unsupported protocol" in run(refused(ours, old))[1]


def test_a_listener_of_another_name_is_not_believed(certificates: Path) -> None:
    ours = Credentials(certificates, "localhost")
    said, _ = run(refused(ours, ours, host="127.0.0.1"))
    assert "the peer's certificate does not do" in said
    assert "127.0.0.1" in said


def test_an_address_in_the_certificate_is_believed(tmp_path: Path) -> None:
    credentials = Credentials(authority(tmp_path, "127.0.0.1"), "127.0.0.1")

    async def test() -> None:
        world = World(Address.parse("tcp:127.0.0.1:0"), credentials)
        async with world.pair() as (near, far):
            assert near.lost is far.lost is None

    run(test())


def test_a_client_in_the_clear_gets_nowhere_and_reads_nothing(certificates: Path) -> None:
    async def test() -> None:
        async with World(ANYWHERE, Credentials(certificates, "localhost")).listener() as listener:
            plain = socket.create_connection(("localhost", listener.address.port))
            plain.sendall(addresses.PREAMBLES[Channel.PROTOCOL] + b"COLO" + bytes(100))
            said = await asyncio.to_thread(plain.recv, 1000)
            assert said[:1] in (b"", b"\x15"), "nothing, or a TLS alert"
            plain.close()

    run(test())


# The command


def test_the_command_makes_an_authority_then_adds_hosts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "new"
    assert cli_certs.main(arguments(place)) == 0
    assert "next: colo certs" in capsys.readouterr().out
    first = (place / "ca.pem").read_bytes()
    assert cli_certs.main(arguments(place, "alpha", "192.0.2.1", as_json=True)) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["new_authority"] is False
    assert facts["files"] == [
        f"{place}/{name}" for name in ("alpha.pem", "alpha-key.pem", "192.0.2.1.pem", "192.0.2.1-key.pem")
    ]
    assert (place / "ca.pem").read_bytes() == first
    Credentials(place, "alpha")
    with pytest.raises(ConfigError, match="has an authority already"):
        cli_certs.main(arguments(place))


def test_the_command_makes_both_at_once_or_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "new"
    with pytest.raises(ConfigError, match="host"):
        cli_certs.main(arguments(place, "alpha", "no host"))
    assert not place.exists()
    assert cli_certs.main(arguments(place, "alpha")) == 0
    assert "host alpha needs ca.pem, alpha.pem and alpha-key.pem" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"certificates in .*/file/x: Not a directory"):
        cli_certs.main(arguments(tmp_path / "file" / "x"))

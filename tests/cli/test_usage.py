"""What is refused before anything runs: one line that says why, and status 2."""

from __future__ import annotations

import subprocess
import sys

import pytest

from colo import cli
from colo.cli import machine as cli_machine
from tests.cli.command import ROOT, inside


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The line on standard error, the status being 2 and the output empty."""
    done = inside(capfd, *words)
    assert done.status == cli.EXIT_USAGE
    assert done.out == b""
    assert done.err.startswith("colo: ")
    assert done.err.count("\n") == 1
    return done.err


@pytest.mark.parametrize(
    ("words", "because"),
    [
        ((), "COMMAND"),
        (("walk",), "invalid choice: 'walk'"),
        (("run",), "nothing to boot"),
        (("run", "hello", "--kernel", "x"), "a machine boots one thing"),
        (("run", "--kernel", "x", "--boot-sector", "y"), "kernel, boot-sector"),
        (("run", "--initrd", "x", "--multiboot", "y"), "initrd belongs to kernel"),
        (("run", "hello", "--module", "x"), "module belongs to multiboot"),
        (("run", "--boot-sector", "x", "--append", "y"), "append"),
        (("run", "--load", "x", "--ram", "64"), "ram: decided by"),
        (("run", "--load", "x", "--seed", "s", "--epoch", "1"), "seed, epoch: decided by"),
        (("run", "--replay", "x", "--net", "none"), "a replay hears its log"),
        (("run", "--replay", "x", "--script", "y"), "a replay hears nothing but its log"),
        (("run", "hello", "--paced", "--free-running"), "not allowed with"),
        (("run", "hello", "--ram", "-1"), "'-1'"),
        (("run", "hello", "--ram", "many"), "MiB"),
        (("run", "hello", "--ram", "99999999"), "RAM of 99999999 MiB"),
        (("run", "hello", "--until-virtual", "soon"), "not a number of seconds"),
        (("run", "hello", "--until-virtual", "0"), "not a number of seconds"),
        (("run", "hello", "--hash-every", "nan"), "not a number of seconds"),
        (("run", "hello", "--epoch", "yesterday"), "neither a date"),
        (("run", "hello", "--exit-on", ""), "empty text"),
        (("run", "hello", "--disk", "x,y"), "option 'y'"),
        (("run", "hello", "--net", "wire"), "network 'wire'"),
        (("run", "hello", "--pcap", "x"), "1 captures for 0 network cards"),
        (("guest", "build"), "--all"),
        (("guest", "build", "--all", "hello"), "--all"),
    ],
)
def test_refused(capfd: pytest.CaptureFixture[str], words: tuple[str, ...], because: str) -> None:
    assert because in refused(capfd, *words)


@pytest.mark.parametrize(
    ("text", "ns"), [("1", 10**9), ("0.25", 250_000_000), ("1e-9", 1), ("0.1", 100_000_000)]
)
def test_seconds_are_exact(text: str, ns: int) -> None:
    """Decimal fractions are not binary ones: 0.1 s is 100,000,000 ns, on every host."""
    assert cli.seconds(text) == ns


def test_an_epoch_is_a_date_in_utc_or_a_number() -> None:
    assert cli_machine.epoch("2026-01-01") == cli_machine.epoch("1767225600") == 1_767_225_600
    assert cli_machine.epoch("1970-01-01T00:01:00") == 60


def test_help_loads_nothing_that_it_does_not_need() -> None:
    """A help that takes a second is not read: neither numpy nor the engine may be loaded for it."""
    code = (
        "import sys\nfrom colo import cli\n"
        "try: cli.main(['run', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'numba', 'unicorn', 'llvmlite', 'msgspec', 'vmm.machine', 'json'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    for flag in ("--boot-sector", "--until-virtual", "--record", "examples:", "exit status:"):
        assert flag in done.stdout

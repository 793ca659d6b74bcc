"""A guest.toml is the guest linux with a service on top, and says what is wrong with it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import vmm.guest
from colo.cli import parser
from colo.cli.supervise import pair_options
from vmm.errors import GuestBuildError
from vmm.guest import own
from vmm.guest.store import Store

SERVICE = 'start = "tally --fast"\nports = [7000, 80]\n'


def written(directory: Path, text: str) -> str:
    directory.mkdir(exist_ok=True)
    (directory / own.FILE_NAME).write_text(text)
    return str(directory)


def test_what_is_not_said_is_as_in_linux(tmp_path: Path) -> None:
    info = vmm.guest.open(written(tmp_path / "tally", SERVICE)).info
    linux = vmm.guest.open("linux").info
    assert (info.name, info.expect, info.ports) == ("tally", "GUEST-READY tally", (7000, 80))
    assert (info.kind, info.devices) == (linux.kind, linux.devices)
    assert info.cmdline == f"{linux.cmdline} quiet"
    assert info.recipe is not None
    assert linux.recipe is not None
    assert info.recipe.kernels == linux.recipe.kernels
    assert info.recipe.files[: len(linux.recipe.files)] == linux.recipe.files
    assert [each.to for each in info.recipe.files].count("/etc/service") == 2, "the last one is ours"


def test_packages_are_taken_whole_unless_it_says_what(tmp_path: Path) -> None:
    recipes = [
        vmm.guest.open(written(tmp_path, f"{SERVICE}name = 'x'\n{text}")).info.recipe
        for text in ("", 'packages = ["a", "b | c"]', 'packages = ["a"]\ntake = ["/usr/bin/a"]')
    ]
    assert [each and each.take for each in recipes] == [(), ("/",), ("/usr/bin/a",)]
    assert recipes[1] is not None
    assert recipes[1].packages == ("busybox-static", "a", "b | c")


def test_the_service_runs_and_waits_for_its_ports(tmp_path: Path) -> None:
    """Run by a shell of the host, with the guest's functions replaced by ones that tell."""
    text = own.service_text(own.Own(start="echo started\necho again", name="t", ports=(7, 8)))
    script = f"wait_for_port() {{ wait; echo port $1; }}\n{text}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["started", "again", "port 7", "port 8", "GUEST-READY t", ""]


def test_without_ports_the_command_is_waited_for(tmp_path: Path) -> None:
    text = own.service_text(own.Own(start="sleep 0; echo done", name="t"))
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "done\nGUEST-READY t\n"


def test_another_file_is_another_build(tmp_path: Path) -> None:
    name = written(tmp_path / "t", SERVICE + 'files = [{ from = "a", to = "/srv/a" }]\n')
    (tmp_path / "t" / "a").write_text("one")
    guest = vmm.guest.open(name)
    one = guest._recipe_digest()
    assert vmm.guest.open(f"{tmp_path}/./t")._recipe_digest() == one
    shutil.copytree(tmp_path / "t", tmp_path / "elsewhere" / "t")
    assert vmm.guest.open(f"{tmp_path}/elsewhere/t")._recipe_digest() == one
    (tmp_path / "t" / "a").write_text("two")
    assert vmm.guest.open(name)._recipe_digest() != one
    written(tmp_path / "t", SERVICE.replace("fast", "slow"))
    assert vmm.guest.open(name)._recipe_digest() not in (one, guest._recipe_digest())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing required field `start`; the keys are start, name, packages"),
        ("start = ", "not TOML"),
        ("start = ''", "start is empty"),
        (SERVICE + "prots = [1]", "unknown field `prots`"),
        (SERVICE + "name = 'A b'", "name = 'A b', expected "),
        (SERVICE.replace("80", "80000"), r"ports = \[7000, 80000\], expected 1 to 65535"),
        (SERVICE + "ram_mib = 9999", "ram_mib = 9999, expected 1 to 2048"),
        (SERVICE + "within_ms = 0", "within_ms = 0"),
        (SERVICE + 'files = [{ from = "nowhere", to = "/x" }]', "from = 'nowhere': there is no such file"),
        ("#" * own.FILE_BYTES_MAX + "\n", "more than 65536 bytes"),
    ],
)
def test_mistakes_are_named(text: str, message: str, tmp_path: Path) -> None:
    name = written(tmp_path / "t", text)
    with pytest.raises(GuestBuildError, match=message):
        vmm.guest.open(name)


def test_a_directory_without_one(tmp_path: Path) -> None:
    with pytest.raises(
        GuestBuildError, match=r"guest.toml cannot be read .*`colo init DIR` writes an example"
    ):
        vmm.guest.open(f"{tmp_path}/none")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    store = Store(cache=tmp_path / "cache")
    with pytest.raises(GuestBuildError, match="Set COLO_CACHE"):
        store.open(written(tmp_path / "t", SERVICE))


def test_a_pair_of_it_is_called_like_the_directory() -> None:
    assert pair_options(parser().parse_args(["up", "./mine/tally"])).name == "tally"
    assert pair_options(parser().parse_args(["up", "redis"])).name == "redis"

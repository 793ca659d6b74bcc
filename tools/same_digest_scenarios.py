"""What tools/same_digest.py runs in every environment: a fixed set of scenarios, each with its digests.

    python tools/same_digest_scenarios.py [--seed S] [--workers N] [--without-snapshots] SCENARIO...

It needs the project installed and nothing else of the checkout, because it comes by standard input where
there is no checkout (a container, another host).  It prints one JSON object a line: first the facts about the
environment, then a line for each scenario, as soon as that is over.  Worlds and campaigns are the commands
that a person types (``colo sim``, ``colo campaign``), each in a process of its own.

``same`` of a line is what has to be the same everywhere; ``host`` is what may differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("unicorn", "numpy", "numba", "llvmlite", "msgspec")
POINTS_S = (0.01, 0.1, 0.5, 1.0, 1.5)
"""Of virtual time: where a machine is looked at."""
LAST_LINES = 3
FLIPS = """\
guest = "counter"
seed = {seed}
count = 60
faults_per_trial = 1

[workload]
append = "mib=1 ms=1"
span_ns = 505_000_000

[limits]
virtual_ns = 525_000_000

[quiet]
start_ns = 400_000_000

[[fault]]
kind = "register"
when = {{ at = "time", ns = "*" }}
register = "*"
mask = "*"
"""

Same = dict[str, str]
Host = dict[str, Any]


class ScenarioFailed(Exception):
    """A command failed; its last words."""


def colo(*words: str) -> dict[str, Any]:
    """The object that ``colo ... --json`` prints last."""
    command = [sys.executable, "-m", "colo.cli", *words, "--json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = " | ".join((done.stderr or done.stdout).strip().splitlines()[-LAST_LINES:])
        raise ScenarioFailed(f"colo {' '.join(words)}: exit status {done.returncode}: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def states(options: argparse.Namespace) -> tuple[Same, Host]:
    """One machine alone: processor, devices and RAM at several points."""
    import vmm

    same = {}
    with vmm.start("counter", append="mib=2 ms=1") as pc:
        for at_s in POINTS_S:
            pc.run_until(at_s)
            same[f"at {at_s} s"] = pc.hash
    return same, {}


def boot(options: argparse.Namespace) -> tuple[Same, Host]:
    """Debian's kernel and its Redis, booted until they serve, or what an earlier boot here left."""
    import vmm
    from colo.sim.image import Image

    began_s = time.time()
    image = Image.of("redis")
    path = Path(image.options.load or "")
    same = {"guest": vmm.guest.open("redis").build().key}
    same["file"] = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    with vmm.start(image.options) as pc:
        same["state"] = pc.hash
    return same, {"booted_here": path.stat().st_mtime >= began_s}


def world(guest: str, policy: str) -> Callable[[argparse.Namespace], tuple[Same, Host]]:
    """A pair whose primary is killed, its network and its client."""

    def run(options: argparse.Namespace) -> tuple[Same, Host]:
        words = ("--policy", policy, "--kill", "0.4", "--seconds", "1", "--seed", str(options.seed))
        found = colo("sim", guest, *words)
        import vmm.guest

        same = {"guest": vmm.guest.open(guest).build().key}
        return same | {key: str(found[key]) for key in ("virtual_ns", "events", "digest")}, {}

    return run


def flips(options: argparse.Namespace) -> tuple[Same, Host]:
    """Bits of registers flipped in one guest, each trial forked from the golden run."""
    with tempfile.TemporaryDirectory(prefix="same-digest-") as directory:
        plan = Path(directory) / "flips.toml"
        plan.write_text(FLIPS.format(seed=options.seed))
        out = str(plan.with_suffix(".campaign"))
        found = colo("campaign", str(plan), "--out", out, "--workers", str(options.workers))
    outcomes = ", ".join(f"{name} {count}" for name, count in sorted(found["outcomes"].items()) if count)
    return {"outcomes": outcomes, "golden": found["golden"], "digest": found["digest"]}, {}


SCENARIOS: dict[str, Callable[[argparse.Namespace], tuple[Same, Host]]] = {
    "counter": states,
    "udpecho-periodic": world("udpecho", "periodic"),
    "udpecho-lockstep": world("udpecho", "lockstep"),
    "udpecho-colo": world("udpecho", "colo"),
    "flips": flips,
    "redis-boot": boot,
    "redis-lockstep": world("redis", "lockstep"),
}
"""The last digest of each stands for it in the table."""


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.system()


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


def facts() -> dict[str, Any]:
    """What an environment is; ``build`` has to be the same everywhere."""
    from colo.build import build

    return {
        "build": build(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "os": _os_name(),
        "libc": " ".join(platform.libc_ver()),
        "kernel": platform.release(),
        "processor": _processor(),
        "hash_seed": os.environ.get("PYTHONHASHSEED", "random"),
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _forget_snapshots() -> None:
    """So that this environment boots its own."""
    from colo.pair.warm import DIRECTORY
    from vmm.guest.store import cache_directory

    shutil.rmtree(cache_directory() / DIRECTORY, ignore_errors=True)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run scenarios; one JSON object a line.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="of the campaign")
    parser.add_argument(
        "--without-snapshots", action="store_true", help="forget what was booted in COLO_CACHE"
    )
    parser.add_argument("scenario", nargs="+", choices=list(SCENARIOS))
    options = parser.parse_args(words)
    print(json.dumps({"facts": facts()}), flush=True)
    if options.without_snapshots:
        _forget_snapshots()
    for name in options.scenario:
        began_s = time.monotonic()
        line: dict[str, Any] = {"scenario": name}
        try:
            line["same"], line["host"] = SCENARIOS[name](options)
        except Exception as exc:  # another environment may still run it, which is worth a table
            line["error"] = " | ".join(f"{type(exc).__name__}: {exc}".splitlines())
        print(json.dumps(line | {"seconds": round(time.monotonic() - began_s, 1)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

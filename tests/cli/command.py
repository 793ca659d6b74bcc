"""Running ``colo`` as a user does: another process, real descriptors, an exit status.

:func:`inside` runs the same command in this process, where loading the engine has been paid for: for
what does not depend on a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from colo import cli

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120
"""A first run compiles the callbacks, which takes a shared host up to a minute."""
COLO = (sys.executable, "-m", "colo.cli")


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    status: int
    out: bytes
    err: str

    @property
    def said(self) -> bytes:
        """The guest's part of the output of a run with --json."""
        return b"".join(self.out.splitlines(keepends=True)[:-1])

    @property
    def facts(self) -> dict[str, Any]:
        """The object on the last line, which --json promises."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found


def colo(*words: str | Path, stdin: bytes = b"") -> Done:
    command = [*COLO, *map(str, words)]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=LIMIT_S, cwd=ROOT, check=False)
    return Done(done.returncode, done.stdout, done.stderr.decode())


def inside(capfd: pytest.CaptureFixture[str], *words: str | Path) -> Done:
    """As :func:`colo`, with nothing on standard input."""
    kept, empty = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    try:
        status: Any = cli.main([*map(str, words)])
    except SystemExit as exc:
        status = exc.code
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(empty)
    said = capfd.readouterr()
    return Done(status, said.out.encode(), said.err)

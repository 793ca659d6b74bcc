"""Running ``colo`` as a user does: another process, real descriptors, an exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

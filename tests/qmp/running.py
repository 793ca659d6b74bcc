"""A small node in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colo.qmp.schema import ColoMode

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60


@contextmanager
def started(path: Path, mode: ColoMode) -> Iterator[subprocess.Popen[bytes]]:
    """Serving when the block begins; dead when it ends."""
    command = [sys.executable, "-m", "tests.qmp.small_node", str(path), mode.value]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "the node did not start"
            yield process
        finally:
            process.kill()

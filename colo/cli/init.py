"""``colo init DIR``: a small project that tests a service of one's own, and runs as it is.

The files are those of ``colo/template``, copied: they are what is tested, so nothing is filled in.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colo.cli import Parser

TEMPLATE = Path(__file__).parent.parent / "template"

EPILOG = """\
what it writes: a guest recipe (Debian packages, files, a start command) with an example service, a client
that writes a history, a fault plan, and tests that need nothing else: run pytest in the directory.

example:
  colo init tests/faults && cd tests/faults && pytest
"""


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    init = commands.add_parser(
        "init",
        help="write a small project that tests a service of yours under faults",
        description="Write a small project that tests a service of yours under faults that replay.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    init.add_argument("directory", metavar="DIR", help="where; made if it is not there, and otherwise empty")


def main(options: argparse.Namespace) -> int:
    directory = Path(options.directory)
    names = write(directory)
    print(f"{directory}: {', '.join(names)}")
    print(f"next: cd {directory} && pytest")
    return 0


def write(directory: Path) -> list[str]:
    """The names of what was written; ConfigError, and nothing written, when something is in the way."""
    from vmm.errors import ConfigError

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(
            f"init {directory}: it exists and is not an empty directory: expected one that is new or empty;"
            " name another"
        )
    try:
        shutil.copytree(TEMPLATE, directory, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    except OSError as exc:
        raise ConfigError(
            f"init {directory}: {exc.strerror or exc}: expected a directory that may be written"
        ) from None
    return sorted(str(each.relative_to(TEMPLATE)) for each in TEMPLATE.rglob("*") if _belongs(each))


def _belongs(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts

"""Plans of campaigns to begin with, which ``colo campaign --example NAME`` prints.

Each is what it is for in its first line, a comment.  They are complete: a campaign of one runs as it is.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def examples() -> dict[str, str]:
    """What each is for, by name."""
    found = {}
    for file in sorted(HERE.glob("*.toml")):
        first, _, _ = file.read_text().partition("\n")
        found[file.stem] = first.removeprefix("# ")
    return found


def text(name: str) -> str:
    """The plan of this name, one of :func:`examples`, as TOML."""
    return (HERE / f"{name}.toml").read_text()

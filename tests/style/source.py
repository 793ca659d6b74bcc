"""What the style tests read: the project's own files, parsed once.

A file counts when git would commit it (tracked, or new and not ignored).  Where there is no git, in
an unpacked sdist, every file below the top-level folders counts.
"""

from __future__ import annotations

import ast
import gc
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("vmm", "colo", "guests", "tests", "tools", ".ci")
TOP_FILES = ("pyproject.toml", "README.md", "CONTRIBUTING.md", "LICENSE", ".gitignore")
TEXT_MAX = 1 << 20
"""A file larger than this is data, not something a person wrote."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One Python file: its path from the root, its text and its tree."""

    path: str
    text: str
    tree: ast.Module

    def at(self, node: ast.AST) -> str:
        """``path:line``, which editors turn into a link."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}"


def module(path: str, text: str) -> Module:
    return Module(path, text, ast.parse(text, filename=path))


@cache
def files() -> tuple[str, ...]:
    """Every file of the project, by path."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
        paths = [path for path in listed.split("\0") if path]
    except (OSError, subprocess.CalledProcessError):
        below = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
        paths = [str(path.relative_to(ROOT)) for path in below if "__pycache__" not in path.parts]
        paths += TOP_FILES
    return tuple(sorted(path for path in paths if (ROOT / path).is_file()))


@cache
def modules() -> tuple[Module, ...]:
    """Every Python file of the project."""
    parsed = tuple(module(path, (ROOT / path).read_text()) for path in files() if path.endswith(".py"))
    gc.freeze()  # they are kept, and are so many that every collection of garbage would take a second
    return parsed


def modules_below(*prefixes: str) -> list[Module]:
    return [each for each in modules() if each.path.startswith(prefixes)]


def text_files() -> Iterator[tuple[str, str]]:
    """``(path, text)`` of everything that a person could have written."""
    for path in files():
        data = (ROOT / path).read_bytes()
        if len(data) <= TEXT_MAX and b"\0" not in data:
            yield path, data.decode(errors="replace")


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """``(qualified name, node)`` of every function, nested ones after the one that holds them."""
    for child in ast.iter_child_nodes(tree):
        name = f"{prefix}{getattr(child, 'name', '')}"
        if isinstance(child, Function):
            yield name, child
        inner = f"{name}." if isinstance(child, Function | ast.ClassDef) else prefix
        yield from functions(child, inner)


def span(node: ast.stmt | ast.expr) -> int:
    """Lines from the first to the last of ``node``."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def length(function: Function) -> int:
    """Lines that a reader holds in mind at once: no docstring, and not the functions inside."""
    lines = span(function)
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        lines -= span(first)
    return lines - sum(span(inner) for name, inner in functions(function) if "." not in name)


def dotted(node: ast.expr) -> str:
    """``a.b.c`` for an attribute chain that starts at a name, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def imported(tree: ast.AST) -> dict[str, tuple[str, ast.stmt]]:
    """What each local name stands for, from every import in the file: ``{"np": ("numpy", node)}``."""
    names: dict[str, tuple[str, ast.stmt]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                # `import a.b` binds `a`, but what is imported is `a.b`: the key is what tells them apart.
                names[alias.asname or alias.name] = (alias.name, node)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = (f"{node.module}.{alias.name}", node)
    return names

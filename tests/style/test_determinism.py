"""Nothing that differs between two hosts or two runs comes near the guest.

The guest sees virtual time and logged inputs, nothing else (README, "Deterministic by construction").
Each banned name comes with what takes its place.  The names are resolved through the file's imports,
so an alias does not hide one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.style import source

NEAR_THE_GUEST = (
    "vmm/devices/",
    "vmm/boot/",
    "vmm/bus.py",
    "vmm/clock.py",
    "vmm/device.py",
    "vmm/machine.py",
    "vmm/ram.py",
    "vmm/snapshot.py",
    "vmm/state.py",
)
PROTOCOL = tuple(
    f"colo/{name}.py"
    for name in (
        "compare/checksum",
        "compare/comparison",
        "compare/connections",
        "compare/console",
        "compare/fragments",
        "compare/other",
        "compare/packet",
        "compare/qemu",
        "compare/seq",
        "compare/stream",
        "compare/tcp",
        "compare/tcp_options",
        "compare/tcp_sides",
        "compare/verdict",
        "disk",
        "failover",
        "filters/__init__",
        "life",
        "lockstep/marks",
        "lockstep/reader",
        "lockstep/writer",
        "messages",
        "node/replica",
        "node/stage",
        "peer",
        "policy/colo",
        "policy/facts",
        "policy/lockstep",
        "policy/periodic",
        "primary",
        "rewrite/causes",
        "rewrite/connection",
        "rewrite/edit",
        "rewrite/fragment",
        "rewrite/options",
        "rewrite/quoted",
        "rewrite/rewriter",
        "rewrite/table",
        "rewrite/timestamps",
        "secondary",
        "transport/wire",
    )
)

HOST_TIME = "Clock.now_ns is the only time there is; waiting for the wall belongs to a file of its own"
RANDOMNESS = "a seed in the configuration, expanded by the device that needs it"
THREADS = "one thread runs the machine; inputs enter through its door, stamped with virtual time"
BANNED_NEAR_THE_GUEST = {
    "time": HOST_TIME,
    "datetime.datetime.now": HOST_TIME,
    "datetime.datetime.utcnow": HOST_TIME,
    "datetime.datetime.today": HOST_TIME,
    "datetime.date.today": HOST_TIME,
    "random": RANDOMNESS,
    "secrets": RANDOMNESS,
    "uuid": RANDOMNESS,
    "os.urandom": RANDOMNESS,
    "os.getrandom": RANDOMNESS,
    "numpy.random": RANDOMNESS,
    "asyncio": THREADS,
    "concurrent": THREADS,
    "multiprocessing": THREADS,
    "threading": THREADS,
    "id": "an address differs between processes; give the thing a number or a name",
    "hash": "str and bytes hash differently in each process; use hashlib.blake2b",
}
CODE_FROM_DATA = "vmm.state: declared, validated, canonical; bytes from outside never become code"
BANNED_ANYWHERE = dict.fromkeys(
    ("pickle", "cPickle", "dill", "shelve", "marshal", "eval", "exec"), CODE_FROM_DATA
)


def uses(module: source.Module, banned: dict[str, str]) -> Iterator[str]:
    """Each use of a banned name, with what takes its place."""
    names = source.imported(module.tree)

    def verdict(full: str, node: ast.AST) -> Iterator[str]:
        for name, instead in banned.items():
            if full == name or full.startswith(f"{name}."):
                yield f"{module.at(node)}: {full}: {instead}"

    for full, statement in names.values():
        yield from verdict(full, statement)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            head, _, tail = source.dotted(node).partition(".")
            if head in names and tail:
                yield from verdict(f"{names[head][0]}.{tail}", node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in names:
            yield from verdict(node.func.id, node)


def loops_over_sets(module: source.Module) -> Iterator[str]:
    """Each loop whose order is that of a set, which for strings differs between processes."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.For | ast.comprehension):
            over = node.iter
            made = isinstance(over, ast.Call) and source.dotted(over.func) in ("set", "frozenset")
            if made or isinstance(over, ast.Set | ast.SetComp):
                yield f"{module.at(over)}: loop over a set: sorted(...) gives it an order"


def test_nothing_of_the_host_near_the_guest() -> None:
    said = [
        line
        for module in source.modules_below(*NEAR_THE_GUEST, *PROTOCOL)
        for line in (*uses(module, BANNED_NEAR_THE_GUEST), *loops_over_sets(module))
    ]
    assert not said, "\n".join(said)


def test_no_code_from_data_anywhere() -> None:
    said = [line for module in source.modules() for line in uses(module, BANNED_ANYWHERE)]
    assert not said, "\n".join(said)


@pytest.mark.parametrize(
    "text",
    [
        "import time",
        "import time as t\nt.sleep(1)",
        "from time import monotonic",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import datetime as when\nwhen.utcnow()",
        "import os\nos.urandom(4)",
        "import numpy as np\nnp.random.default_rng()",
        "import concurrent.futures",
        "def f(x):\n    return id(x)",
    ],
)
def test_the_rule_finds(text: str) -> None:
    assert list(uses(source.module("x.py", text), BANNED_NEAR_THE_GUEST))


@pytest.mark.parametrize(
    "text",
    [
        "import datetime\ndatetime.datetime(2000, 1, 1)",
        "import os\nos.pread(0, 1, 0)",
        "self.time = 3",
        "import hashlib\nhashlib.blake2b(b'')",
        "device.id = 4\ndevice.hash()",
    ],
)
def test_the_rule_leaves_alone(text: str) -> None:
    assert not list(uses(source.module("x.py", text), BANNED_NEAR_THE_GUEST))


@pytest.mark.parametrize("text", ["for x in {1, 2}: pass", "[x for x in set(y)]"])
def test_the_set_rule_finds(text: str) -> None:
    assert list(loops_over_sets(source.module("x.py", text)))

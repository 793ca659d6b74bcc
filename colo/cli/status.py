"""``colo status`` for people: a line a node, and under it what is the same for both or out of order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from colo.qmp.schema import MigrateInfo, MigrationStatus, NodeFacts

if TYPE_CHECKING:
    from colo.cli.pair import Target, View

HEAD = ("node", "role", "state", "epoch", "pause", "pages", "bytes", "held", "peer")
LEFT = 3
"""Columns of words; the others are numbers."""
KIB, MIB = 1 << 10, 1 << 20
UNDER_WAY = (MigrationStatus.SETUP, MigrationStatus.ACTIVE, MigrationStatus.CANCELLING)


def show(target: Target) -> str:
    """Several lines, without the last line break."""
    rows = [HEAD, *(_row(view) for view in target.views)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(_cells(row, widths)).rstrip() for row in rows]
    return "\n".join([*_title(target), *lines, *_notes(target)])


def _title(target: Target) -> Iterator[str]:
    if (pair := target.pair) is not None:
        state = "" if pair.supervised else ", which is dead"
        yield f"pair {pair.name}: guest {pair.guest}, supervisor {pair.supervisor.pid}{state}"


def _cells(row: tuple[str, ...], widths: list[int]) -> Iterator[str]:
    for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if column < LEFT else cell.rjust(width)


def _row(view: View) -> tuple[str, ...]:
    facts = view.facts
    if facts is None:
        return (view.name, view.role or "-", "no answer" if view.alive else "-", *["-"] * (len(HEAD) - LEFT))
    node = facts.colo.x_node
    numbers = ["-"] * (len(HEAD) - LEFT) if node is None else _numbers(node)
    return (view.name, view.role, facts.status.status.value, *numbers)


def _numbers(node: NodeFacts) -> list[str]:
    return [
        str(node.epoch),
        "-" if node.pause_ms is None else f"{node.pause_ms:.2f} ms",
        "-" if node.pages is None else str(node.pages),
        "-" if node.bytes is None else size(node.bytes),
        str(node.held_frames),
        "-" if node.peer_age_ms is None else f"{node.peer_age_ms:.0f} ms",
    ]


def _notes(target: Target) -> Iterator[str]:
    for view in target.views:
        if view.facts is None:
            yield f"{view.name}: {view.error}"
            continue
        yield from _progress(view.name, view.facts.migrate)
        node = view.facts.colo.x_node
        if node is not None and view.role != "secondary":
            yield (
                f"{view.name}: generation {node.generation}, policy {node.policy}, arbiter {node.arbiter}, "
                f"failover {node.failover.value}"
            )
            yield f"{view.name}: dirty pages by {node.dirty_source} ({node.dirty_reason})"


def _progress(name: str, migrate: MigrateInfo) -> Iterator[str]:
    if migrate.status in UNDER_WAY and (ram := migrate.ram) is not None:
        left = (
            ""
            if migrate.x_remaining_time is None
            else f", about {migrate.x_remaining_time / 1000:.1f} s left"
        )
        yield (
            f"{name}: synchronising, {size(ram.remaining)} of {size(ram.total)} to go, "
            f"round {ram.dirty_sync_count}{left}"
        )
    if migrate.status is MigrationStatus.FAILED:
        yield f"{name}: the synchronisation failed: {migrate.error_desc or 'no reason given'}"


def size(size_bytes: int) -> str:
    if size_bytes < KIB:
        return f"{size_bytes} B"
    return f"{size_bytes / KIB:.1f} KiB" if size_bytes < MIB else f"{size_bytes / MIB:.1f} MiB"

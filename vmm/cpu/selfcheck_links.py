"""Are the exits of translated blocks and their links where :mod:`vmm.cpu.block_entry` reckons with them?

Asked of a loop that has just run, once with plain and once with patched prologues: the block before it jumps
to it, it jumps to itself and to the block behind it, and one exit was never taken.
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, NamedTuple

from vmm.cpu import layout

if TYPE_CHECKING:
    from vmm.cpu.engine import Engine

JUMP = 0xE9


class Loop(NamedTuple):
    """Linear addresses of the three blocks."""

    before: int
    itself: int
    behind: int


class Exit(NamedTuple):
    """A way out of a block: where it jumps to, and where it would while it is not linked."""

    block: int
    number: int
    leads_to: int
    unlinked: int


def blocks(cpu: int) -> dict[int, int]:
    """Linear address -> descriptor of the blocks in the engine's jump cache."""
    cache = ctypes.string_at(cpu + layout.CPU_TB_JMP_CACHE, layout.TB_JMP_CACHE_SIZE)
    found = [block for (block,) in struct.iter_unpack("<Q", cache) if block]
    return {_word(block + layout.TB_PC): block for block in found}


def exit_of(block: int, number: int) -> Exit | None:
    """The exit of ``block``, or None if it has none of this number, or none with a jump."""
    code = _word(block + layout.TB_CODE)
    unlinked = ctypes.c_uint16.from_address(block + layout.TB_EXIT_UNLINKED + 2 * number).value
    jump = _word(block + layout.TB_EXIT_JUMP + 8 * number)
    if unlinked == layout.NO_EXIT or not 0 < jump < unlinked:
        return None
    opcode, distance = struct.unpack("<Bi", ctypes.string_at(code + jump - 1, 5))
    if opcode != JUMP:
        return None
    return Exit(block, number, code + jump + 4 + distance, code + unlinked)


def incoming(block: int, known: set[int]) -> list[tuple[int, int]]:
    """The exits, as block and number, that the engine has linked to ``block``, up to one that is unknown."""
    found = []
    link = _word(block + layout.TB_INCOMING)
    while link:
        found.append((link & ~1, link & 1))
        if link & ~1 not in known or len(found) > 2 * len(known):
            break
        link = _word((link & ~1) + layout.TB_NEXT_INCOMING + 8 * (link & 1))
    return found


def check(engine: Engine, loop: Loop) -> str:
    """What is different, or an empty string."""
    found = blocks(engine.cpu)
    if not set(loop) <= set(found):
        return "blocks that have run are not in the engine's jump cache"
    before, itself, behind = (found[address] for address in loop)
    exits = [exit_of(block, number) for block in (before, itself) for number in (0, 1)]
    if any(way is None for way in exits):
        return "the exits of blocks are not where they were"
    led = {(way.block, way.number): way for way in exits if way is not None}
    known = set(found.values())
    for block, sources in ((itself, {before, itself}), (behind, {itself})):
        links = incoming(block, known)
        if len(links) != len(sources) or {source for source, _ in links} != sources:
            return "the links of blocks are not where they were"
        if any(led.pop(link).leads_to != _word(block + layout.TB_CODE) for link in links):
            return "blocks that are linked do not jump to each other"
    if any(way.leads_to != way.unlinked for way in led.values()):
        return "an exit that was never taken jumps away"
    return ""


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value

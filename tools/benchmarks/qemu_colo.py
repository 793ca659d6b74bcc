"""What QEMU's own COLO showed, as constants: the goals of the sections about protected guests.

Measured in 2026 with QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18) and its TCG, on the same kind of machine
(two cores, which client, primary and secondary share): guest of 256 MiB with virtio-net, migration over
a Unix socket, x-checkpoint-delay 1000 ms.  Stock, that COLO hangs or corrupts its secondary under TCG,
so a preloaded library worked around both; that is why nothing here starts it.  Failures were told to it
at once by hand (x-colo-lost-heartbeat), so its silences have no time for noticing in them.
"""

from __future__ import annotations

from dataclasses import dataclass

PROVENANCE = (
    "QEMU COLO: constants, QEMU 7.2.22 COLO with work-arounds, same kind of machine, measured 2026; "
    "migration over a Unix socket, x-checkpoint-delay 1000; told of a failure at once, by hand"
)


@dataclass(frozen=True)
class Checkpoint:
    """Medians of 14 or 15 checkpoints."""

    pause_ms: float
    """The virtual CPU stopped to running again."""
    kib: float


CHECKPOINT = {
    0: Checkpoint(3.6, 395),
    1: Checkpoint(4.1, 1421),
    8: Checkpoint(8.9, 8607),
    64: Checkpoint(45.3, 66167),
}
"""By MiB in which one word of every page was rewritten every 50 ms."""

SILENCE_PRIMARY_MS = 222.0
"""Longest gap between replies when the primary was killed, one connection, median of 8."""
SILENCE_SECONDARY_MS = 221.0
"""The same for the secondary, median of 5."""

SETUP_S = 4.11
"""Nothing to the first checkpoint, cold boot included, median of 6."""
PLAIN_MB, PRIMARY_MB, SECONDARY_MB = 236.0, 245.0, 442.0
"""VmRSS: QEMU alone, and in COLO after load."""
PRIMARY_IDLE_MB, SECONDARY_IDLE_MB = 233.0, 433.0
PRIMARY_DIRTIED_MB, SECONDARY_DIRTIED_MB = 281.0, 478.0
"""VmRSS with 64 MiB dirtied."""

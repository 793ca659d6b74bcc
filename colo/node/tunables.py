"""What a node may be told while it runs (QMP ``migrate-set-parameters``), with its defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from colo import policy
from colo.node.leading import Settings

HEARTBEAT_MS, SILENCE_MS = 50, 300
"""A node is taken for dead after six missing beats; on a busy host one is easily late."""


@dataclass
class Tunables:
    """``migrate-set-parameters``."""

    checkpoint_delay_ms: int = policy.DELAY_MS_DEFAULT
    heartbeat_ms: int = HEARTBEAT_MS
    silence_ms: int = SILENCE_MS
    policy: str = "periodic"
    settings: Settings = field(default_factory=Settings)

"""What a node may be told while it runs (QMP ``migrate-set-parameters``), with its defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from colo.node.leading import Settings
from colo.policy import Policy, choose

HEARTBEAT_MS, SILENCE_MS = 50, 300
"""A node is taken for dead after six missing beats; on a busy host one is easily late."""


@dataclass
class Tunables:
    """``migrate-set-parameters``."""

    checkpoint_delay_ms: int | None = None
    """None: the policy's own."""
    heartbeat_ms: int = HEARTBEAT_MS
    silence_ms: int = SILENCE_MS
    policy: str = "periodic"
    settings: Settings = field(default_factory=Settings)

    def rule(self) -> Policy:
        """The policy, made new."""
        return choose(self.policy, self.checkpoint_delay_ms)

"""What ``colo status|checkpoint|failover|kill|stop`` do: find the nodes, ask them, tell them.

Who is primary and who is secondary is what the nodes themselves say; what the supervisor wrote down
counts only for a node that does not answer.
"""

from __future__ import annotations

import argparse
import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from colo.cli.status import show
from colo.errors import ControlError
from colo.pair import runtime
from colo.pair.runtime import Pair, Process
from colo.qmp.client import UNREACHABLE, Client
from colo.qmp.schema import CheckpointInfo, ColoMode, ColoStatus, MigrateInfo, RunState, StatusInfo

APART = {RunState.INMIGRATE: "incoming", RunState.POSTMIGRATE: "halted", RunState.SHUTDOWN: "ended"}
"""What a node outside COLO is called when its guest does not run for one of these reasons."""
ASK_S = 2.0
"""A node that does not say what it is within this does not answer."""
FAILOVER_WAIT_S = 10.0
STOP_WAIT_S = 20.0
"""The supervisor ends both nodes and its network first."""
DEAD_WAIT_S = 10.0
"""After SIGKILL: the kernel still frees the guest's RAM."""


@dataclass(frozen=True)
class Facts:
    """What a node says."""

    status: StatusInfo
    colo: ColoStatus
    migrate: MigrateInfo


@dataclass(frozen=True)
class View:
    """A node, as found just now."""

    name: str
    path: Path
    process: Process | None
    """None: not known, for a socket that nobody answers at."""
    recorded_role: str
    facts: Facts | None
    error: str
    """Why there are no facts."""

    @property
    def role(self) -> str:
        if self.facts is None:
            return self.recorded_role
        if self.facts.colo.mode is not ColoMode.NONE:
            return str(self.facts.colo.mode.value)
        return APART.get(self.facts.status.status, "alone")

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive


@dataclass(frozen=True)
class Target:
    """What a command is about: a pair, or one node by its socket."""

    pair: Pair | None
    views: list[View]

    @classmethod
    def find(cls, words: str | None) -> Target:
        """ControlError if there is no such thing."""
        if words is not None and "/" in words:
            return cls(None, [_look(Path(words), ASK_S)])
        pair = runtime.find(words)
        return cls(pair, [_look(node.path, ASK_S, node) for node in pair.nodes])

    def side(self, role: str) -> View:
        """The node of that role.  ControlError if none has it."""
        found = [view for view in self.views if view.role == role]
        # One that answers speaks for itself; a record may be older than the last failover.
        for view in sorted(found, key=lambda view: view.facts is None):
            return view
        roles = ", ".join(f"{view.name} is {view.role or 'unknown'}" for view in self.views)
        raise ControlError(f"no node is {role}: {roles or 'the pair has no node yet'}")


def main(options: argparse.Namespace) -> int:
    """The exit status.  ControlError: what could not be done, and why."""
    target = Target.find(options.target)
    match options.command:
        case "status":
            return status(target, options.json)
        case "checkpoint":
            checkpoint(target, options.json)
        case "failover":
            failover(target, options.side, options.json)
        case "kill":
            kill(target, options.side, options.json)
        case "stop":
            stop(target, options.json)
    return 0


def status(target: Target, as_json: bool) -> int:
    if as_json:
        print(json.dumps(_object(target)))
    else:
        print(show(target))
    return 0 if any(view.facts for view in target.views) else 1


def checkpoint(target: Target, as_json: bool) -> None:
    view = target.side("primary")
    with Client(view.path) as client:
        info = client.query(CheckpointInfo, "x-colo-checkpoint")
    _say(
        as_json,
        f"{view.name}: epoch {info.epoch} is committed; paused {info.pause_ms:.2f} ms, "
        f"{info.pages} pages, {info.bytes} bytes",
        {"node": view.name, **msgspec.to_builtins(info)},
    )


def failover(target: Target, side: str, as_json: bool) -> None:
    view = target.views[0] if target.pair is None else target.side(side)
    with Client(view.path) as client:
        client.execute("x-colo-lost-heartbeat")
        data = client.wait_event("COLO_EXIT", timeout_s=FAILOVER_WAIT_S).data
    _say(
        as_json,
        f"{view.name}: left COLO as {data['mode']} (reason: {data['reason']}) and goes on alone",
        {"node": view.name, **data},
    )


def kill(target: Target, side: str, as_json: bool) -> None:
    view = target.side(side)
    if view.process is None or not view.process.signal(signal.SIGKILL):
        raise ControlError(f"{view.name} ({side}) is dead already")
    if not view.process.wait_dead(DEAD_WAIT_S):
        raise ControlError(
            f"{view.name} ({side}, process {view.process.pid}) was killed, and has not ended yet"
        )
    _say(
        as_json,
        f"killed {view.name}: {side}, process {view.process.pid}; colo status shows who goes on",
        {"node": view.name, "role": side, "pid": view.process.pid, "signal": "SIGKILL"},
    )


def stop(target: Target, as_json: bool) -> None:
    pair, views = target.pair, target.views
    supervised = pair is not None and pair.supervisor.signal(signal.SIGTERM)
    if pair is not None and supervised and not pair.supervisor.wait_dead(STOP_WAIT_S):
        raise ControlError(f"supervisor {pair.supervisor.pid} has not ended within {STOP_WAIT_S:g} s")
    # The secondary first: it must not take the end of its primary for a failure.
    told = [view for view in sorted(views, key=lambda view: view.role != "secondary") if _quit(view)]
    if pair is not None:
        runtime.remove(pair)
    name = pair.name if pair is not None else views[0].name
    _say(
        as_json,
        f"stopped {name}",
        {"stopped": name, "supervisor": supervised, "nodes": [view.name for view in told]},
    )


def _quit(view: View) -> bool:
    """End a node that still runs; False if it was dead."""
    if view.process is None:
        raise ControlError(view.error)
    if not view.process.alive:
        return False
    try:
        with Client(view.path) as client:
            client.execute("quit")
    except ControlError as exc:
        if exc.kind != UNREACHABLE or view.process.alive:
            raise
    if not view.process.wait_dead(DEAD_WAIT_S):
        raise ControlError(
            f"{view.name} (process {view.process.pid}) was told to quit, and has not ended yet"
        )
    return True


def _look(path: Path, limit_s: float, node: runtime.Node | None = None) -> View:
    """Ask a node what it is."""
    name = path.stem if node is None else node.name
    process = None if node is None else node.process
    role = "" if node is None else node.role
    if process is not None and not process.alive:
        return View(name, path, process, "dead", None, f"process {process.pid} is dead")
    try:
        with Client(path, limit_s) as client:
            facts = Facts(
                client.query(StatusInfo, "query-status"),
                client.query(ColoStatus, "query-colo-status"),
                client.query(MigrateInfo, "query-migrate"),
            )
            return View(name, path, process or Process.of(client.pid), role, facts, "")
    except (ControlError, msgspec.ValidationError) as exc:
        return View(name, path, process, role, None, str(exc))


def _object(target: Target) -> dict[str, Any]:
    """What --json prints: the nodes' own words, and who they are."""
    pair = target.pair
    roles = {view.role for view in target.views if view.facts}
    return {
        "pair": pair and pair.name,
        "guest": pair and pair.guest,
        "supervisor": pair and {"pid": pair.supervisor.pid, "alive": pair.supervised},
        "protected": {"primary", "secondary"} <= roles,
        "nodes": [_node_object(view) for view in target.views],
    }


def _node_object(view: View) -> dict[str, Any]:
    facts = view.facts
    return {
        "name": view.name,
        "socket": str(view.path),
        "pid": view.process and view.process.pid,
        "alive": view.alive,
        "role": view.role or None,
        "error": view.error or None,
        "status": facts and msgspec.to_builtins(facts.status),
        "colo": facts and msgspec.to_builtins(facts.colo),
        "migrate": facts and msgspec.to_builtins(facts.migrate),
    }


def _say(as_json: bool, text: str, facts: dict[str, Any]) -> None:
    print(json.dumps(facts) if as_json else text)

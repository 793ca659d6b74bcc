"""Recording a machine's inputs to a log, and running a log again (:mod:`vmm.record`, :mod:`vmm.replay`).

    start(machine, "run.log")           before: the machine is as the replay will find it
    machine.run(...)                    every input is logged with its virtual time
    mark(machine)                       now and then: the hash of the whole state
    finish(machine, "poweroff")

    follow(twin, "run.log")             a machine made alike, from the same start
    run(twin)                           inputs come from the log; ReplayError at the first departure

A start is power-on or a snapshot: the log's header has the hash of that state, so another kernel,
another configuration or another snapshot is refused before the first instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vmm.errors import ReplayError
from vmm.machine import Machine
from vmm.record import Image, LogHeader, Recorder
from vmm.replay import Replayer
from vmm.state import pack

CUT_SHORT = "cut short"
"""Why a recording ended that nobody finished."""


def start(machine: Machine, path: Path | str, images: Sequence[Image] = ()) -> Recorder:
    """Log the inputs and outputs of ``machine`` from here on; ``images`` are named for people."""
    assert machine.door.recorder is None, "this machine is being recorded"
    header = LogHeader(
        machine.layout_digest,
        machine.engine_digest,
        pack(machine.config),
        machine.state_hash(),
        list(images),
    )
    recorder = Recorder(path, header)
    machine.serial.restart()
    machine.door.recorder = recorder
    return recorder


def mark(machine: Machine) -> bytes:
    """Log the hash of the state as it is now, and return it; not while the machine runs."""
    digest = machine.state_hash()
    if machine.door.recorder is not None:
        machine.door.recorder.mark(machine.clock.now_ns, digest)
    return digest


def finish(machine: Machine, reason: str) -> None:
    """End the log, with a last mark; nothing more is logged."""
    recorder = machine.door.recorder
    assert isinstance(recorder, Recorder), "this machine is not being recorded"
    mark(machine)
    machine.door.recorder = None
    recorder.close(machine.clock.now_ns, reason)


def follow(machine: Machine, log: Replayer | Path | str) -> Replayer:
    """Let ``machine`` hear nothing but ``log``; ReplayError unless it is as the log starts."""
    replayer = log if isinstance(log, Replayer) else Replayer(log)
    try:
        _require_start(machine, replayer)
    except BaseException:
        replayer.close()
        raise
    machine.serial.restart()
    machine.door.replayer = replayer
    return replayer


def _require_start(machine: Machine, replayer: Replayer) -> None:
    header = replayer.header
    facts = (
        ("device layout", header.layout_digest, machine.layout_digest),
        ("CPU engine", header.engine_digest, machine.engine_digest),
        ("configuration", header.config.hex(), pack(machine.config).hex()),
        ("start state", header.start_hash.hex(), machine.state_hash().hex()),
    )
    for what, logged, found in facts:
        if logged != found:
            named = ", ".join(image.name for image in header.images) or "not named"
            raise ReplayError(
                f"log {replayer.path}: its {what} is {logged:.80}, this machine's is {found:.80};"
                f" start from the images or the snapshot that were recorded ({named})"
            )


def run(machine: Machine) -> str:
    """Run the log that ``machine`` follows to its end, and let go of it; why the recording ended.

    ReplayError says where the machine departs.
    """
    replayer = machine.door.replayer
    assert isinstance(replayer, Replayer), "this machine follows no log"
    try:
        machine.run(replayer.end_ns)
        replayer.finish(machine.clock.now_ns)
    finally:
        machine.door.replayer = None
        replayer.close()
    return replayer.reason or CUT_SHORT

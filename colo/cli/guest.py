"""``colo guest``: what there is to run, preparing it, and what it consists of."""

from __future__ import annotations

import argparse
import json
from typing import Any

from colo.cli.progress import Progress
from vmm import guest
from vmm.errors import ConfigError
from vmm.guest import GuestStatus

KIB = 1024


def main(arguments: argparse.Namespace) -> int:
    match arguments.action:
        case "list":
            _list(arguments.json)
        case "build":
            _build(_names(arguments), arguments.force, arguments.json)
        case _:
            _info(arguments.names[0], arguments.json)
    return 0


def _names(arguments: argparse.Namespace) -> list[str]:
    if bool(arguments.names) == arguments.all:
        raise ConfigError("guest build: name the guests to build (colo guest list), or give --all")
    return guest.Store().names() if arguments.all else arguments.names


def _list(as_json: bool) -> None:
    found = guest.list_guests()
    if as_json:
        print(json.dumps([_facts(status) for status in found]))
        return
    width = max(len(status.info.name) for status in found)
    for status in found:
        print(f"{status.info.name:<{width}}  {_state(status):<11}  {status.info.title}")


def _build(names: list[str], force: bool, as_json: bool) -> None:
    for name in names:
        guest.open(name)  # an unknown name is told before anything is built
    for name in names:
        with Progress(f"guest {name}") as progress:
            guest.open(name).build(progress.step, force)
        if not as_json:
            status = guest.info(name)
            print(f"{name}: ready, {_size(status.size_bytes)}", flush=True)
    if as_json:
        print(json.dumps([_facts(guest.info(name)) for name in names]))


def _info(name: str, as_json: bool) -> None:
    status = guest.info(name)
    if as_json:
        print(json.dumps(_facts(status)))
        return
    info = status.info
    rows = {
        "title": info.title,
        "what": info.description,
        "kind": info.kind,
        "state": _state(status),
        "RAM": f"{info.ram_mib} MiB",
        "devices": ", ".join(info.devices) or "none beyond a PC's",
        "ports": ", ".join(map(str, info.ports)) or "none",
        "command": info.cmdline or "none",
        "ready when": f"the console says {info.expect!r}, within {info.within_ms / 1000:g} virtual seconds",
        "licence": info.licence,
    }
    print(name)
    for key, value in rows.items():
        print(f"  {key:<11} {value}")
    for package, version in status.packages.items():
        print(f"  {'package':<11} {package} {version}")


def _state(status: GuestStatus) -> str:
    if status.info.built_in:
        return "built in"
    return _size(status.size_bytes) if status.built else "not built"


def _size(size_bytes: int) -> str:
    if size_bytes < KIB * KIB:
        return f"{-(-size_bytes // KIB)} KiB"
    return f"{-(-size_bytes // KIB // KIB)} MiB"


def _facts(status: GuestStatus) -> dict[str, Any]:
    info = status.info
    return {
        "name": info.name,
        "title": info.title,
        "description": info.description,
        "kind": info.kind,
        "built": status.built,
        "built_in": info.built_in,
        "key": status.key,
        "size_bytes": status.size_bytes,
        "ram_mib": info.ram_mib,
        "devices": info.devices,
        "ports": info.ports,
        "command_line": info.cmdline,
        "expect": info.expect,
        "within_ms": info.within_ms,
        "licence": info.licence,
        "packages": status.packages,
    }

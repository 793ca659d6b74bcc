"""``colo certs``: the authority and the certificates that a link over TCP needs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from colo.transport import certs


def main(arguments: argparse.Namespace) -> int:
    directory, hosts = Path(arguments.directory), list(arguments.host or ())
    made: list[Path] = []
    for host in hosts:
        certs.check_name(host)  # before anything is made
    new = not certs.has_authority(directory)
    if new or not hosts:
        made += certs.make_authority(directory)
    for host in hosts:
        made += certs.make_certificate(directory, host)
    if arguments.json:
        facts = {"directory": str(directory), "new_authority": new, "files": [str(file) for file in made]}
        print(json.dumps(facts))
        return 0
    for file in made:
        print(file)
    for host in hosts:
        print(f"host {host} needs ca.pem, {host}.pem and {host}-key.pem, and no other file of these")
    if not hosts:
        print(f"next: colo certs {directory} --host NAME, for each host of the pair")
    return 0

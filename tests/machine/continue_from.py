"""Go on from a snapshot in a process of its own: print the hash when it is that late.

python -m tests.machine.continue_from SNAPSHOT VIRTUAL_NS
"""

from __future__ import annotations

import sys

from vmm.machine import resume


def main() -> None:
    path, until_ns = sys.argv[1:]
    with resume(path) as machine:
        machine.run(int(until_ns))
        print(machine.clock.now_ns, machine.digest)


if __name__ == "__main__":
    main()

"""The plans that ``tools/bench --only faults`` runs."""

from __future__ import annotations

from pathlib import Path

from colo.campaign import planned
from colo.campaign.planned import Planned
from colo.faults import plan

GENERAL = '"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", ' + ", ".join(
    f'"r{number}"' for number in range(8, 16)
)
KERNEL = "0x1000000..0x29fffff"
"""Physical addresses of the kernel's image, code and data: the same wherever it is loaded (nokaslr)."""

COUNTER = """\
name = "bit flips in a counter"
guest = "counter"
seed = 7
count = {count}
faults_per_trial = 1

[workload]
append = "mib=1 ms=1"
span_ns = 1_005_000_000

[limits]
virtual_ns = 1_025_000_000

[observe]
marks = 67

[[fault]]
kind = "register"
when = {{ at = "instruction", count = "*" }}
register = "*"
mask = "*"

[[fault]]
kind = "data"
space = "physical"
when = {{ at = "instruction", count = "*" }}
address = "*"
width = 4
mask = "*"
"""

TYPED = "redis-cli -r 100 incr x | tail -1; redis-cli -r 100 incr x | tail -1; echo DO''NE\n"
"""Half of what is typed is an empty string, so that its echo is not what it says."""
ECHOED = "NE\r\n"
BEGIN_NS, END_NS = 6_100_000, 51_800_000
"""From the end of the echo to the last line, on our machine; there QEMU's trials begin and end, too."""
REDIS = f"""\
name = "bit flips in Redis"
guest = "redis"
seed = 5
count = {{count}}
faults_per_trial = 1

[workload]
span_ns = 70_000_000
input = [{{{{ at_ns = 1_000_000, text = {TYPED!r} }}}}]

[limits]
virtual_ns = 100_000_000

[observe]
marks = 35
ignore = ["tsc: ", "clocksource: ", "random: "]

[[fault]]
kind = "register"
when = {{{{ at = "time", ns = "{BEGIN_NS}..{END_NS}" }}}}
register = [{GENERAL}, "rip"]
mask = "*"

[[fault]]
kind = "data"
space = "physical"
when = {{{{ at = "time", ns = "{BEGIN_NS}..{END_NS}" }}}}
address = "{KERNEL}"
width = 1
mask = "*"
"""

KILLS = """\
name = "one kill"
guest = "{guest}"
seed = 11
count = {count}

[world]
policy = "{policy}"
client = "{client}"

[[fault]]
kind = "node"
effect = "kill"
target = ["pair-0", "pair-1"]
when = {{ at = "time", ns = "0..200_000_000" }}
"""


def counter(count: int) -> Planned:
    return planned_text(COUNTER.format(count=count), "counter")


def redis(count: int) -> Planned:
    return planned_text(REDIS.format(count=count), "redis")


def kills(guest: str, client: str, policy: str, count: int) -> Planned:
    text = KILLS.format(guest=guest, client=client, policy=policy, count=count)
    return planned_text(text, f"{guest}-{policy}")


def planned_text(text: str, name: str) -> Planned:
    return planned.planned(plan.loads(text, str(Path(name).with_suffix(".toml"))), text)

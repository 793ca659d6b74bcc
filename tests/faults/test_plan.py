"""Plan files: what they say, and that everything wrong in one is said with its line and key."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.faults import plan as plans
from colo.faults.choices import Between, Drawn, Fixed, OneOf, Wild
from colo.faults.document import FILE_BYTES_MAX, LINE_MAX
from colo.faults.errors import PlanError
from colo.faults.fields import Text, Whole
from colo.faults.model import AtTime, Delay, LinkFault, NodeFault
from colo.faults.templates import Template
from colo.faults.triggers import Part

PLAN = """\
name = "everything"
guest = "redis"
seed = 1
count = 1000
faults_per_trial = "1..3"

[limits]
virtual_ns = 5_000_000

[quiet]
start_ns = 1000
between_ns = 100

[[fault]]
kind = "register"
when = { at = "instruction", count = "*" }
register = ["rax", "rbx"]
mask = "*"
weight = 5

[[fault]]
kind = "data"
when = [
  { at = "time", ns = "*" },
  { at = "address", address = "*", hits = "1..0x10" },
]
address = "*"
width = 4
mask = { distribution = "weighted", values = [1, 2], weights = [3, 1] }
operation = "*"

[[fault]]
kind = "node"
target = "primary"
effect = "pause"
for_ns = { distribution = "log-uniform", low = 1, high = 1_000_000 }
when = { at = "step", step = "VmstateReceived", node = "primary" }

[world]
machines = 2
"""


def test_what_a_plan_says() -> None:
    plan = plans.loads(PLAN)
    assert (plan.head.name, plan.head.guest, plan.head.seed, plan.head.count) == (
        "everything",
        "redis",
        1,
        1000,
    )
    assert (plan.limits.virtual_ns, plan.quiet.start_ns, plan.quiet.between_ns) == (5_000_000, 1000, 100)
    assert plan.per_trial == Between(1, 3)
    assert plan.weights == (5, 1, 1)
    register, data, node = (template.fields for template in plan.templates)
    assert register["register"] == OneOf((Fixed("rax"), Fixed("rbx")), (1, 1))
    assert register["mask"] == data["operation"] == Wild()
    assert data["mask"] == OneOf((Fixed(1), Fixed(2)), (3, 1))
    time, address = data["when"].options
    assert isinstance(time, Template)
    assert address.fields["hits"] == Between(1, 16)
    assert node["for_ns"] == Drawn("log-uniform", (1, 1_000_000), 0, (1 << 62) - 1)


CASES = tomllib.loads(Path(__file__).with_name("plan_errors.toml").read_text())["case"]


class Client(Part, frozen=True, kw_only=True):
    name: Annotated[str, Text("[a-z]+", 8, "a name")]


class World(msgspec.Struct, frozen=True):
    """As whoever runs a plan would declare it."""

    machines: Annotated[int, Whole(1, 2)] = 1
    names: list[str] = []
    client: tuple[Client, ...] = ()


@pytest.mark.parametrize("case", CASES, ids=[case["says"][:50] for case in CASES])
def test_what_is_wrong_is_said_with_its_line(case: dict[str, str]) -> None:
    assert PLAN.count(case["old"]) == 1
    with pytest.raises(PlanError) as caught:
        plans.loads(PLAN.replace(case["old"], case["new"]), "p.toml").section("world", World)
    assert str(caught.value) == f"p.toml:{case['says']}"


def test_a_section_of_others_is_read_as_they_declare_it() -> None:
    assert plans.loads(PLAN).section("world", World) == World(machines=2)
    assert plans.loads(PLAN).section("observe", World) == World()
    clients = PLAN + 'client = [{ name = "a" }, { name = "b" }]'
    assert plans.loads(clients).section("world", World).client == (Client(name="a"), Client(name="b"))


def test_a_plan_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    with pytest.raises(PlanError, match=r"a\.toml: found No such file or directory, expected a file"):
        plans.load(file)
    file.write_bytes(b"seed = 1\nname = '\xff'\n")
    with pytest.raises(PlanError, match=r"a\.toml:2: found bytes that are no UTF-8"):
        plans.load(file)
    file.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(PlanError, match=r"a\.toml: found more, expected at most 262144 bytes"):
        plans.load(file)
    file.write_text(PLAN)
    assert plans.load(file).templates == plans.loads(PLAN).templates


def test_a_plan_in_python_is_one_of_a_file() -> None:
    """Faults of the model, mappings as in a file, or both."""
    plan = plans.plan(
        seed=1,
        count=5,
        fault=[
            NodeFault(effect="kill", when=AtTime(ns=5), target="primary"),
            {"kind": "link", "effect": ["drop", "corrupt"], "when": {"at": "time", "ns": "0..5"}},
            LinkFault(effect="delay", delay=Delay(ns=5), when=AtTime(ns=5)),
        ],
    )
    assert [template.kind for template in plan.templates] == [NodeFault, LinkFault, LinkFault]
    with pytest.raises(PlanError) as caught:
        plans.plan(fault=[{"kind": "link", "effect": "dorp", "when": {"at": "time", "ns": 1}}])
    assert str(caught.value).startswith("plan: fault[0].effect: found 'dorp', expected one of")
    assert str(caught.value).endswith("did you mean drop?")


YAML = """\
name: everything
guest: redis
seed: 1
count: 1000
faults_per_trial: 1..3
limits: {virtual_ns: 5_000_000}
quiet:
  start_ns: 1000
  between_ns: 100
fault:
  - kind: register
    when: {at: instruction, count: "*"}
    register: [rax, rbx]
    mask: "*"
    weight: 5
  - kind: data
    when:
      - {at: time, ns: "*"}
      - {at: address, address: "*", hits: 1..0x10}
    address: "*"
    width: 4
    mask: {distribution: weighted, values: [1, 2], weights: [3, 1]}
    operation: "*"
  - kind: node
    target: primary
    effect: pause
    for_ns: {distribution: log-uniform, low: 1, high: 1000000}
    when: {at: step, step: VmstateReceived, node: primary}
world: {machines: 2}
"""


def test_yaml_says_the_same() -> None:
    pytest.importorskip("yaml")
    assert plans.loads(YAML, "p.yaml").document.data == plans.loads(PLAN).document.data


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("width: 4", "width: 9", "21: fault[1].width: found 9, expected a whole number from 1 to 8 (bytes)"),
        ("weights: [3, 1]", "weights: [3, x]",
         "22: fault[1].mask.weights[1]: found 'x', expected a whole number from 0 to 1000000"),
        ("width: 4", "width: 4\n    width: 4",
         "22: fault[1].width: found this key again, expected each key once"),
        ("width: 4", "width: &a 4", "21: found an anchor or an alias, expected values; write them out"),
        ("width: 4", "width: *a", "21: found an anchor or an alias, expected values; write them out"),
        ("width: 4", "width: !!python/name:os.system 4",
         "21: found the tag tag:yaml.org,2002:python/name:os.system, expected values without tags"),
        ("width: 4", "<<: {width: 4}", "21: fault[1]: found a key that is no text, expected text; quote it"),
        ("width: 4", "4: 4", "21: fault[1]: found a key that is no text, expected text; quote it"),
        ("width: 4", "width: 2026-99-99", "21: fault[1].width: found '2026-99-99', expected a value"),
        ("width: 4", "width: {", "23: found no YAML ("),
        ("width: 4", "width: " + "[" * 40 + "]" * 40,
         "21: found too many lists and tables in each other, expected at most 32"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_yaml(old: str, new: str, message: str) -> None:
    pytest.importorskip("yaml")
    with pytest.raises(PlanError) as caught:
        plans.loads(YAML.replace(old, new), "p.yaml")
    assert str(caught.value).startswith(f"p.yaml:{message}")


def test_yaml_without_pyyaml_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(PlanError, match="pip install PyYAML, or write the plan in TOML"):
        plans.loads(YAML, "p.yaml")


@pytest.mark.parametrize("text", ["", "- 1", "just text"])
def test_yaml_that_is_no_plan(text: str) -> None:
    pytest.importorskip("yaml")
    with pytest.raises(PlanError):
        plans.loads(text, "p.yml")


HOSTILE = {
    "deep lists": ("a = " + "[" * 2000 + "]" * 2000, "too many lists and tables in each other"),
    "deep keys": (".".join("a" * 1000) + " = 1", "an unknown key"),
    "long line": ("a" * (LINE_MAX + 1), f"{LINE_MAX + 1} characters"),
    "long number": ("seed = " + "9" * 4000, "a number of 13288 bits"),
    "long hexadecimal": ("seed = 0x" + "F" * 4000, "a number of 16000 bits"),
    "list of a long number": ("seed = [0x" + "F" * 4000 + "]", "a list with a very long number"),
    "endless range": ("count = '" + "1" * 2000 + ".." + "2" * 2000 + "'", "'1111"),
    "many faults": ("fault = [" + "{},\n" * 2000 + "]", "2000 faults"),
    "no fault": ("seed = 1", "0 faults"),
    "faults that are a number": ("fault = 1", "found 1"),
    "long list": (PLAN.replace("width = 4", "width = [" + "1,\n" * 5000 + "]"), "a list of 5000"),
    "not a number": (PLAN.replace("width = 4", "width = nan"), "found nan"),
    "a date": (PLAN.replace("width = 4", "width = 2026-01-01"), "datetime.date(2026, 1, 1)"),
    "long range": (PLAN.replace("width = 4", 'width = """' + ("1" * 90 + "\\\n") * 2000 + '"""'), "'1111"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name: str) -> None:
    text, found = HOSTILE[name]
    with pytest.raises(PlanError) as caught:
        plans.loads(text)
    assert found in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_thousand_alternatives_are_checked_in_their_sum_not_their_product() -> None:
    many = "[" + ", ".join(str(1 << bit) for bit in range(32)) + "]"
    text = PLAN.replace("width = 4", "width = [4, 5, 6, 7, 8]").replace(
        'mask = { distribution = "weighted", values = [1, 2], weights = [3, 1] }',
        f"mask = {many}\nvalue = {many}",
    )
    with pytest.raises(PlanError, match="no value with 'set0'"):
        plans.loads(text)


@given(st.data())
def test_a_damaged_plan_gives_an_error_or_a_plan(data: st.DataObject) -> None:
    """Pieces of the plan exchanged, doubled, or replaced by something else."""
    pieces = PLAN.split(" ")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(pieces) - 1))
        odd = st.sampled_from(
            ['"*"', "[]", "{}", "-1", "1e999", '"1..2"', "true", "=", "\n", '"""', "0x", "[[a]]"]
        )
        pieces[at] = data.draw(odd | st.sampled_from(pieces) | st.text(max_size=3))
    try:
        plans.loads(" ".join(pieces))
    except PlanError as error:
        place = error.place
    else:
        return
    assert place.startswith("plan.toml")

"""A failure under faults is made smaller by running the test again; what cannot be is said."""

from __future__ import annotations

import pytest

import colo.sim.clients
import colo.testing.again
import colo.testing.subjects  # noqa: F401

pytest_plugins = ["pytester"]

KILLS = "[" + ", ".join(f"kill('n{number}', {number}000)" for number in range(8)) + "]"
HEAD = f"""
import pytest
def kill(target, ns):
    return dict(kind="node", effect="kill", target=target, when=dict(at="time", ns=ns))
@pytest.mark.colo(faults={KILLS}, seeds=[11])
def test_it(_colo_run):
    trial = _colo_run.trial
    names = [fault.target for fault in trial.faults]
"""
"""The faults are looked at, not made to happen: what a world does with them is not the plugin's."""


def told(pytester: pytest.Pytester, body: str, *options: str) -> list[str]:
    pytester.makepyfile(test_it=HEAD + body)
    result = pytester.runpytest_inprocess(*options)
    result.assert_outcomes(failed=1)
    lines = [line.strip() for line in result.outlines]
    start = next((at for at, line in enumerate(lines) if line.strip("- ") == "colo: smallest"), None)
    assert start is not None
    return lines[start + 1 : next(at for at in range(start, len(lines)) if lines[at].startswith("==="))]


def test_only_the_faults_that_are_needed_are_left(pytester: pytest.Pytester) -> None:
    lines = told(pytester, "    assert not {'n2', 'n5'} <= {*names}\n")
    assert lines[0].startswith("2 of 8 faults fail in the same way, no smaller one does (")
    assert [line for line in lines if line.startswith("target")] == ['target = "n2"', 'target = "n5"']
    assert lines.count('when = { at = "time", ns = 0 }') == 2, "and at the simplest time"
    directory = pytester.path / ".pytest_cache" / "colo" / "test_it.py-test_it-seed11"
    smallest = (directory / "smallest.toml").read_text()
    assert smallest.count("[[fault]]") == 2
    assert smallest.startswith("seed = 11\n")
    assert (directory / "trial.toml").read_text().count("[[fault]]") == 8


def test_another_failure_is_not_the_same(pytester: pytest.Pytester) -> None:
    """With few faults this test fails for another reason, which must not be taken for the first one."""
    body = "    if len(names) < 4:\n        raise KeyError('few')\n    assert 'n3' not in names\n"
    assert told(pytester, body)[0].startswith("4 of 8 faults fail in the same way")


def test_what_does_not_fail_again_is_said(pytester: pytest.Pytester) -> None:
    body = "    runs.append(1)\n    assert len(runs) > 1\nruns = []\n"
    lines = told(pytester, body)
    assert lines[0].startswith("the same faults did not fail in the same way again")


def test_fixtures_are_made_anew_for_each_run(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import pytest\n@pytest.fixture\ndef fresh():\n    yield []\n")
    body = "    fresh.append(1)\n    assert fresh == [1] and 'n0' not in names\n"
    pytester.makepyfile(test_it=(HEAD + body).replace("(_colo_run)", "(_colo_run, fresh)"))
    result = pytester.runpytest_inprocess()
    result.stdout.fnmatch_lines(["*1 of 8 faults fail in the same way, no smaller one does*"])


def test_who_debugs_is_not_asked_about_other_runs(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        asked="import pdb\n"
        "class Asked(pdb.Pdb):\n"
        "    def interaction(self, frame, traceback): print('asked about it')\n"
    )
    pytester.syspathinsert()
    pytester.makepyfile(test_it=HEAD + "    assert 0\n")
    result = pytester.runpytest_inprocess("--pdb", "--pdbcls", "asked:Asked")
    assert result.outlines.count("asked about it") == 1
    result.stdout.no_fnmatch_line("*smallest*")


def test_it_ends_after_so_many_runs(pytester: pytest.Pytester) -> None:
    body = "    assert not {'n2', 'n5'} <= {*names}\n"
    assert told(pytester, body, "--colo-shrink", "3")[0].endswith("there may be a smaller one (3 runs):")


def test_it_can_be_switched_off(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=HEAD + "    assert 0\n")
    result = pytester.runpytest_inprocess("--colo-shrink", "0")
    result.stdout.fnmatch_lines(["*- colo -*"])
    result.stdout.no_fnmatch_line("*smallest*")


def test_a_failure_without_faults_is_run_once(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(world):\n    print('ran')\n    assert 0\n")
    result = pytester.runpytest_inprocess("-s")
    assert result.outlines.count("test_a_failure_without_faults_is_run_once.py ran") == 1
    result.stdout.no_fnmatch_line("*smallest*")


def test_a_plan_beside_the_test_is_drawn_by_the_seed(pytester: pytest.Pytester) -> None:
    plan = (
        '[[fault]]\nkind = "node"\neffect = "kill"\ntarget = "n"\nwhen = { at = "time", ns = "0..1000000" }\n'
    )
    (pytester.mkdir("sub") / "plan.toml").write_text(plan)
    pytester.makepyfile(
        **{
            "sub/test_it": "import pytest\n"
            "@pytest.mark.colo(faults='plan.toml', seeds=3)\n"
            "def test_it(_colo_run): print('ns', _colo_run.trial.faults[0].when.ns, '.')\n"
        }
    )
    said = [pytester.runpytest_inprocess("-s").outlines for _ in range(2)]
    times = [[line.split("ns ")[1] for line in lines if "ns " in line] for lines in said]
    assert times[0] == times[1]
    assert len({*times[0]}) == 3


def test_a_plan_with_a_mistake_points_to_its_line(pytester: pytest.Pytester) -> None:
    (pytester.path / "plan.toml").write_text('[[fault]]\nkind = "node"\nefect = "kill"\n')
    pytester.makepyfile("import pytest\n@pytest.mark.colo(faults='plan.toml')\ndef test_it(world): pass\n")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*PlanError: *plan.toml:3: *efect*did you mean effect?*"])


def test_a_machine_meets_its_faults(pytester: pytest.Pytester) -> None:
    """Three flips in RAM that nobody uses: the one that the test looks for is found among them."""
    flip = "DataFault(address={}, space='physical', width=1, mask=255, when=AtTime(ns=5_000_000))"
    flips = ", ".join(flip.format(address) for address in (0x3000000, 0x3100000, 0x3200000))
    pytester.makepyfile(
        test_it="import pytest\nfrom colo.faults.model import AtTime, DataFault\n"
        f"@pytest.mark.colo(guest='counter', faults=[{flips}])\n"
        "def test_it(machine):\n"
        "    before = machine.read_physical(0x3100000, 1)\n"
        "    machine.run_for(0.004)\n"
        "    assert machine.read_physical(0x3100000, 1) == before\n"
        "    machine.run_for(0.002)\n"
        "    assert machine.read_physical(0x3100000, 1) == before\n"
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*test_it.py:9: AssertionError",
            "what the faults did:",
            "  0.0* s at 0x*: *",
            "1 of 3 faults fail in the same way, no smaller one does*",
            "  address = 0x3100000",
        ]
    )

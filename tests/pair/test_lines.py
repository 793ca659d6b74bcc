"""What a node says of itself must not be able to hurt it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from colo.node.process import Lines, NodeOptions
from vmm.launch import LaunchOptions


def test_a_full_disk_costs_lines_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    """/dev/full fails every write with ENOSPC (full(4)); a survivor reports in the middle of a take-over."""
    trace = os.open("/dev/full", os.O_WRONLY)
    try:
        lines = Lines(NodeOptions(LaunchOptions(), Path("q"), name="a", json=True), trace)
        lines("took-over", {"epoch": 3})
        lines("pairing-ended", {})
    finally:
        os.close(trace)
    said = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [each["event"] for each in said] == ["took-over", "pairing-ended"]
    assert ["lost_lines" in each for each in said] == [False, True]
    assert said[1]["lost_lines"] == 1

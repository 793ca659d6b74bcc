"""Console scripts: their language, and their progress under virtual time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.backends import script as module
from vmm.backends.script import LIMIT_DEFAULT_NS, PlainText, Script, ScriptRunner, Step
from vmm.clock import NEVER_NS
from vmm.errors import ScriptError

SECOND = 10**9

LOGIN = """
# log in
expect login: [within 30s]
send root
expect Password:
send s3cret\\c
send \\n\\c
expect \\x23\\x20 [within 1500ms]
"""


def runner(text: str, start_ns: int = 0) -> ScriptRunner:
    return ScriptRunner(Script.parse(text, "t"), start_ns)


def test_parse() -> None:
    assert Script.parse(LOGIN, "login").steps == (
        Step(3, True, b"login:", 30 * SECOND),
        Step(4, False, b"root\n"),
        Step(5, True, b"Password:", LIMIT_DEFAULT_NS),
        Step(6, False, b"s3cret"),
        Step(7, False, b"\n"),
        Step(8, True, b"# ", 1_500_000_000),
    )


@pytest.mark.parametrize(
    ("line", "data"),
    [
        (r"send a\tb\r\n\\c", b"a\tb\r\n\\c\n"),
        (r"send \\\c", b"\\"),
        (r"send \c", b""),
        ("send", b"\n"),
        (r"send \x03\c", b"\x03"),
        (r"send \e[A\c", b"\x1b[A"),
        (r"send \xff\0\"\a\b\f\v", b'\xff\0"\a\b\f\v\n'),
        ("send  inner  blanks  ", b"inner  blanks\n"),
        ("send\ttab", b"tab\n"),
        ("send grüße", "grüße\n".encode()),
        (r"send \[within 5s]", b"[within 5s]\n"),
        ("send x[within 5s]", b"x[within 5s]\n"),
        ("send # not a comment", b"# not a comment\n"),
    ],
)
def test_what_is_sent(line: str, data: bytes) -> None:
    assert Script.parse(line, "t").steps == (Step(1, False, data),)


@pytest.mark.parametrize(
    ("limit", "ns"),
    [("7ns", 7), ("1us", 1000), ("2.5ms", 2_500_000), ("5 s", 5 * SECOND), ("1min", 60 * SECOND)],
)
def test_limits(limit: str, ns: int) -> None:
    assert Script.parse(f"expect x [within {limit}]", "t").steps == (Step(1, True, b"x", ns),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("wait x", "t:2: 'wait' is no instruction: expected expect TEXT, send TEXT"),
        ("expect", "t:2: expect without a text"),
        ("expect [within 5s]", "t:2: expect without a text"),
        ("expect x [within 5]", r"t:2: '\[within 5\]' is no limit: expected \[within 5s\]"),
        ("expect x [within 5s", r"t:2: '\[within 5s' is no limit"),
        ("expect x [within 5h]", "t:2: .* is no limit"),
        ("expect x [within 0s]", "t:2: a limit of 0s: expected 1ns"),
        ("expect x [within 0.1ns]", "t:2: a limit of 0.1ns"),
        ("expect x [within 99999999999999s]", "t:2: a limit of"),
        ("send x [within 5s]", "t:2: send takes no time"),
        (r"send \q", r"t:2: unknown escape '\\q'"),
        (r"send \x4", r"t:2: unknown escape '\\x'"),
        ("send x\\", r"t:2: unknown escape '\\'"),
        (r"expect x\c", r"t:2: unknown escape '\\c'"),
        ("send " + "x" * 5000, "t:2: a text of 5001 bytes: expected at most 4096"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str) -> None:
    with pytest.raises(ScriptError, match=message):
        Script.parse(f"expect fine\n{line}\n", "t")


def test_too_many_steps() -> None:
    with pytest.raises(ScriptError, match="10001 steps: expected at most 10000"):
        Script.parse("send\n" * (module.STEPS_MAX + 1), "t")


def test_a_dialogue() -> None:
    run = runner(LOGIN)
    assert run.next_deadline_ns == 30 * SECOND
    assert run.feed(b"Debian GNU/Linux 12 vm ttyS0\r\n\r\nvm log", 4 * SECOND) == []
    assert run.feed(b"in: ", 5 * SECOND) == [b"root\n"]
    assert run.next_deadline_ns == 5 * SECOND + LIMIT_DEFAULT_NS
    assert run.feed(b"root\r\nPassword: ", 6 * SECOND) == [b"s3cret", b"\n"]
    run.check(6 * SECOND)
    assert run.next_deadline_ns == 7_500_000_000
    assert run.feed(b"\r\n\x1b[01;32mroot@vm\x1b[00m:~# ", 7 * SECOND) == []
    assert run.finished
    assert run.next_deadline_ns == NEVER_NS
    run.check(NEVER_NS)
    assert run.feed(b"more", 8 * SECOND) == []


def test_what_is_typed_first_needs_no_output() -> None:
    run = runner("send a\nsend b\nexpect c", start_ns=3)
    assert run.next_deadline_ns == NEVER_NS
    assert run.feed(b"", 10) == [b"a\n", b"b\n"]
    assert run.next_deadline_ns == 10 + LIMIT_DEFAULT_NS


def test_an_empty_script_is_finished() -> None:
    run = runner("# nothing\n\n")
    assert run.finished
    assert run.feed(b"x", 0) == []


def test_one_output_may_satisfy_several_lines_in_order_only() -> None:
    run = runner("expect one\nsend 1\nexpect two\nsend 2\nexpect one\nsend 3")
    assert run.feed(b"two one two", 0) == [b"1\n", b"2\n"]
    assert run.at == 4  # the one before is used up
    assert run.feed(b" one", 0) == [b"3\n"]
    assert run.finished


def test_matches_do_not_overlap() -> None:
    run = runner("expect aa\nexpect aa\nsend x")
    assert run.feed(b"aaa", 0) == []
    assert run.feed(b"a", 0) == [b"x\n"]


def test_a_limit_that_passed_says_what_was_expected_and_what_was_seen() -> None:
    run = runner("expect ready\\n [within 2s]", start_ns=SECOND)
    run.feed(b"zero\r\none\r\n\r\n\x1b[31mtwo\x1b[0m\r\nthr\x01ee\xff", 2 * SECOND)
    run.check(3 * SECOND - 1)
    with pytest.raises(ScriptError) as caught:
        run.check(3 * SECOND)
    assert str(caught.value) == (
        "t:1: expected 'ready\\n' within 2 s of virtual time, from 1 s on; the last lines seen:\n"
        "    one\n    two\n    thr.ee\ufffd"
    )


def test_a_limit_that_passed_in_silence() -> None:
    with pytest.raises(ScriptError, match=r"within 0\.0000005 s .*:\n    \(nothing\)"):
        runner("expect x [within 500ns]").check(500)


def test_limits_start_when_their_line_becomes_current() -> None:
    run = runner("expect a [within 1s]\nexpect b [within 1s]")
    run.feed(b"a", SECOND - 1)
    run.check(SECOND)
    assert run.next_deadline_ns == 2 * SECOND - 1


@pytest.mark.parametrize(
    "sequence",
    [
        b"\x1b[0m",
        b"\x1b[38;5;196m",
        b"\x1b[?2004h",
        b"\x1b[2J\x1b[H",
        b"\x1b]0;root@vm: ~\x07",
        b"\x1b]0;title\x1b\\",
        b"\x1bP+q544e\x1b\\",
        b"\x1b(B",
        b"\x1b7\x1b8",
        b"\x1b=",
        b"\x1b[6\x18",  # cancelled, ECMA-48 8.3.6 CAN
    ],
)
def test_escape_sequences_are_not_there_whole_or_in_pieces(sequence: bytes) -> None:
    whole = b"log" + sequence + b"in:"
    for cut in range(len(whole) + 1):
        run = runner("expect login:\nsend x")
        assert run.feed(whole[:cut], 0) + run.feed(whole[cut:], 0) == [b"x\n"], cut


def test_a_line_end_inside_a_broken_sequence_is_text() -> None:
    assert PlainText().feed(b"a\x1b[3\r\nb") == b"a\r\nb"


def test_a_control_string_without_end_does_not_silence_the_guest() -> None:
    plain = PlainText().feed(b"\x1b]" + b"x" * 10_000 + b"login:")
    assert plain.endswith(b"login:")
    assert len(plain) < 10_000


def test_what_is_kept_is_bounded() -> None:
    run = runner("expect needle")
    for _ in range(20):
        run.feed(b"hay\x1b[0m" * 1000 + b"x" * 10_000, 0)
    assert len(run._unmatched) < len(b"needle")
    assert len(run._seen) <= module.SEEN_MAX
    run.feed(b"needle", 0)
    assert run.finished


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8))
def test_chunks_do_not_matter(data: bytes, cuts: list[int]) -> None:
    """The same bytes in other pieces give the same plain text."""
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    plain = PlainText()
    pieces = b"".join(plain.feed(data[a:b]) for a, b in pairwise(edges))
    assert pieces == PlainText().feed(data)


@given(st.lists(st.sampled_from([b"a", b"b", b"ab", b"\x1b[1m", b"\r\n"]), max_size=60), st.data())
def test_progress_does_not_depend_on_chunks(words: list[bytes], draw: st.DataObject) -> None:
    """Against the plain rule: each text is found after the end of the one before."""
    texts = draw.draw(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=6))
    run = runner("".join(f"expect {text}\n" for text in texts))
    for word in words:
        run.feed(word, 0)
    output, at, met = b"".join(words).replace(b"\x1b[1m", b""), 0, 0
    for text in texts:
        found = output.find(text.encode(), at)
        if found < 0:
            break
        at, met = found + len(text), met + 1
    assert run.at == met


FRAGMENTS = [
    "expect",
    "send",
    " ",
    "\n",
    "\r",
    "#",
    "\\",
    "\\c",
    "\\x4",
    "[within ",
    "5",
    "s",
    "]",
    "é",
    "\u2028",
    "\0",
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=25))
def test_parse_gives_a_script_or_a_script_error(fragments: list[str]) -> None:
    text = "".join(fragments)
    lines = [line for line in text.split("\n") if line.strip() and not line.strip().startswith("#")]
    try:
        assert len(Script.parse(text, "t").steps) == len(lines)
    except ScriptError:
        assert lines

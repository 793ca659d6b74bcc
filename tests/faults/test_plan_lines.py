"""Lines of keys in TOML: in these files every number is the line that it stands on."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.faults.errors import Path
from colo.faults.toml_lines import NEST_MAX, TooDeep, locate

EVERYTHING = '''
a = 2 # a comment with [brackets] and "quotes
  b.c = 3
b . "d e" = 4
[b.f] # another
g = [6, 6, # six
  7, { h = 7, i.j = 7 }, [
  8,
  ], ]
text = """
not = 11
[[neither]]
\\"""
""""
k = 15
raw = \'\'\'
' '' [x]
\'\'\'
l = 19
[[m]]
n = 21
[m.o]
p = 23
[[m.q]]
r = 25
[[m.q]]
r = 27
[[m]]
n = 29
[[m.q]]
"r\\u0041.b" = 31
\'s"t\' = 32
when = 1979-05-27 07:32:00
empty = [ ]
none = {}
short = ""
u = { v = 37, w = [37, 37], x = { y = 37 } }
'''


def leaves(found: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value that is neither a table nor a list, and the path to it."""
    if isinstance(found, dict):
        for key, inner in found.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(found, list):
        for number, inner in enumerate(found):
            yield from leaves(inner, (*path, number))
    else:
        yield path, found


def paths(found: Any, path: Path = ()) -> Iterator[Path]:
    if path:
        yield path
    entries = (
        found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    )
    for key, inner in entries:
        yield from paths(inner, (*path, key))


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_every_number_is_on_its_line(ending: str) -> None:
    text = EVERYTHING.replace("\n", ending)
    lines = locate(text)
    numbers = [(path, value) for path, value in leaves(tomllib.loads(text)) if isinstance(value, int)]
    assert len(numbers) == 22
    assert [(path, lines[path]) for path, _ in numbers] == numbers


def test_tables_and_entries_have_lines() -> None:
    lines = locate(EVERYTHING)
    assert lines[("b", "f")] == 5
    assert lines[("m",)] == lines[("m", 0)] == 20
    assert lines[("m", 1)] == 28
    assert lines[("m", 0, "q", 1)] == 26


KEYS = st.one_of(
    st.from_regex(r"[A-Za-z0-9_-]{1,5}", fullmatch=True),
    st.sampled_from(['"a b"', "'c.d'", '"\\u00e9"', '""', "'\"'"]),
)
STRINGS = st.sampled_from(
    ['"x"', "''", '"# [ \\" ="', "'''\n]\n'a'''", '"""\n# \\\\\n""\\"""""', "1.5", "true", "12:00:00", "-3"]
)
BLANKS = st.sampled_from(["", " ", " # }]\n", "\n", "\t"])


@st.composite
def values(draw: st.DrawFn, depth: int = 2) -> str:
    """The text of one value."""
    kind = draw(st.sampled_from(["text", "list", "table"] if depth else ["text"]))
    if kind == "text":
        return draw(STRINGS)
    if kind == "list":
        inner = draw(st.lists(values(depth - 1), max_size=3))
        return "[" + "".join(draw(BLANKS) + text + draw(BLANKS) + "," for text in inner) + draw(BLANKS) + "]"
    keys = draw(st.lists(KEYS, max_size=3, unique=True))
    return "{" + ", ".join(f"{key} = {draw(values(depth - 1))}" for key in keys) + "}"


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Pairs, tables and arrays of tables; not all are valid."""
    text = ""
    for _ in range(draw(st.integers(0, 8))):
        key = ".".join(draw(st.lists(KEYS, min_size=1, max_size=2)))
        shape = draw(st.sampled_from(["{} = {}", "[{}]", "[[{}]]", "# {}"]))
        text += draw(BLANKS) + shape.format(key, draw(values())) + draw(st.sampled_from(["\n", " # x\n"]))
    return text


@given(documents())
def test_exactly_the_paths_of_tomllib(text: str) -> None:
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(locate(text)) == set(paths(found))


@pytest.mark.parametrize("nest", [("[", "]", ""), ("{ a = ", "}", "1")], ids=["lists", "tables"])
def test_a_deep_value_is_refused_by_its_line(nest: tuple[str, str, str]) -> None:
    opening, closing, inner = nest

    def text(depth: int) -> str:
        return "x = 1\ny = " + opening * depth + inner + closing * depth

    assert locate(text(NEST_MAX))[("y",)] == 2
    with pytest.raises(TooDeep) as caught:
        locate(text(NEST_MAX + 2))
    assert caught.value.line == 2

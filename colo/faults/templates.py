"""A table of a plan read as the fault that it describes, with choices where a fault has values.

Everything that can be known without a golden run is said when the plan is read: unknown keys, wrong values,
and combinations that make no fault.  For these, :func:`probes` makes a fault from each option of each choice,
the others at their first one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast, get_args, get_origin

import msgspec

from colo.faults.choices import Between, Drawn, Fixed, OneOf, Wild, advice, read_choice, size_of_list
from colo.faults.document import Document, require_table
from colo.faults.errors import FaultError, Path, nearest, shown
from colo.faults.fields import describe, fits, hints, infos, limit, plain, structs, words
from colo.faults.model import KINDS
from colo.faults.wildcards import WILDCARDS

S = TypeVar("S", bound=msgspec.Struct)


@dataclass(frozen=True)
class Template:
    """A struct with a choice for each field that the table has."""

    kind: type[msgspec.Struct]
    fields: dict[str, Any]
    """By name: a choice, or a template where the field is a struct."""
    path: Path


def read_template(
    document: Document, path: Path, found: Any, kinds: tuple[type[msgspec.Struct], ...]
) -> Template:
    """The template in a table whose tag says which of ``kinds`` it is."""
    table = require_table(document, path, found)
    kind = _kind(document, path, table, kinds)
    tag = kind.__struct_config__.tag_field
    known = hints(kind)
    fields: dict[str, Any] = {}
    for key, value in table.items():
        if key == tag:
            continue
        if key not in known:
            raise document.unknown((*path, key), (*([tag] if tag else []), *known))
        fields[key] = _field(document, (*path, key), value, kind, key)
    for info in infos(kind):
        if info.required and info.name not in fields:
            raise document.error(path, f"no {info.name}", f"{info.name}: {describe(known[info.name])}")
    return Template(kind, fields, path)


def _kind(
    document: Document, path: Path, table: dict[str, Any], kinds: tuple[type[msgspec.Struct], ...]
) -> type[msgspec.Struct]:
    by_tag = {str(kind.__struct_config__.tag): kind for kind in kinds}
    tag = kinds[0].__struct_config__.tag_field
    if tag is None:
        return kinds[0]
    expected = "one of " + ", ".join(by_tag)
    if tag not in table and len(kinds) > 1:
        raise document.error(path, f"a table without {tag}", f"{tag} = {expected}")
    name = table.get(tag, next(iter(by_tag)))
    if not isinstance(name, str) or name not in by_tag:
        raise document.error((*path, tag), shown(name), expected, nearest(name, by_tag))
    return by_tag[name]


def _field(document: Document, path: Path, found: Any, kind: type[msgspec.Struct], name: str) -> Any:
    hint = hints(kind)[name]
    inner = structs(hint)
    if inner and isinstance(found, dict):
        return read_template(document, path, found, inner)
    if inner and isinstance(found, list):
        size_of_list(document, path, found)
        options = [_field(document, (*path, n), entry, kind, name) for n, entry in enumerate(found)]
        return OneOf(tuple(options), (1,) * len(options))
    wild = (kind, name) in WILDCARDS or (bool(words(hint)) and not inner)
    return read_choice(document, path, found, hint, wild)


def build(document: Document, template: Template, values: dict[str, Any]) -> Any:
    """The struct with these values; an error points into the document."""
    try:
        return template.kind(**values)
    except FaultError as error:
        raise document.at(error, template.path) from None


def exact(document: Document, template: Template) -> Any:
    """The struct of a template without choices, as a trial has it."""
    for name, choice in template.fields.items():
        if isinstance(choice, Template):
            exact(document, choice)
        elif not isinstance(choice, Fixed):
            advice = "a plan has choices, a trial has none"
            raise document.error((*template.path, name), "a choice", "one value", advice)
    return next(probes(document, template))


def check_template(document: Document, template: Template) -> None:
    """Raise for the first probe that makes no struct."""
    for _ in probes(document, template):
        pass


def probes(document: Document, template: Template) -> Iterator[Any]:
    """A struct for the first option of every choice, then one for each other option of each choice."""
    options = {name: _options(document, template, name) for name in template.fields}
    first = {name: values[0] for name, values in options.items()}
    yield build(document, template, first)
    for name, values in options.items():
        for value in values[1:]:
            yield build(document, template, {**first, name: value})


def _options(document: Document, template: Template, name: str) -> list[Any]:
    return list(_values(document, template.kind, name, template.fields[name]))


def _values(document: Document, kind: type[msgspec.Struct], name: str, choice: Any) -> Iterator[Any]:
    match choice:
        case Template():
            yield from probes(document, choice)
        case Fixed(value):
            yield value
        case Between(low, high):
            yield from (low, high)
        case Drawn(name, numbers, low, high):
            ends = numbers if name in ("uniform", "log-uniform") else numbers[:1]
            yield from (min(max(number, low), high) for number in ends)
        case OneOf(options):
            for option in options:
                yield from _values(document, kind, name, option)
        case Wild():
            wildcard = WILDCARDS.get((kind, name))
            yield from [wildcard.probe] if wildcard else words(hints(kind)[name])


def read_fault(document: Document, path: Path, found: Any) -> Template:
    """A fault, checked as far as it can be."""
    if isinstance(found, msgspec.Struct) and type(found) in KINDS.values():
        found = plain(found)
    template = read_template(document, path, found, tuple(KINDS.values()))
    check_template(document, template)
    return template


def read_struct(document: Document, path: Path, found: Any, kind: type[S]) -> S:
    """A table of plain values as a struct: for the parts of a plan that others declare."""
    table = require_table(document, path, found)
    known = hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise document.unknown((*path, key), known)
        values[key] = _plain_field(document, (*path, key), value, known[key])
    for info in infos(kind):
        if info.required and info.name not in values:
            raise document.error(path, f"no {info.name}", f"{info.name}: {describe(known[info.name])}")
    return cast("S", build(document, Template(kind, {}, path), values))


def _plain_field(document: Document, path: Path, value: Any, hint: Any) -> Any:
    inner = structs(hint)
    if len(inner) == 1 and isinstance(value, dict):
        return read_struct(document, path, value, inner[0])
    entries = structs(get_args(hint)[0]) if get_origin(hint) in (list, tuple) else ()
    if entries:
        if not isinstance(value, list | tuple):
            raise document.error(path, shown(value), "a list of tables")
        made = [read_struct(document, (*path, n), entry, entries[0]) for n, entry in enumerate(value)]
        return get_origin(hint)(made)
    if limit(hint) is not None and not fits(value, hint):
        raise document.error(path, shown(value), describe(hint), advice(value, hint))
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        raise document.error(path, shown(value), str(error).removeprefix("Expected ")) from None

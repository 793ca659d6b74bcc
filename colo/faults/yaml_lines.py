"""A YAML plan as plain data with lines: the part of YAML that says what TOML can say.

PyYAML parses (it is optional: the extra ``yaml``); its nodes have positions.  Scalars are what its safe
loader makes of them (YAML 1.1), so ``on`` is true and ``1:30`` is 90: quote what is text.  Refused: anchors
and aliases, with which a small file describes a huge one, tags, merge keys, and keys that are no strings.
"""

from __future__ import annotations

from typing import Any

from colo.faults.errors import Path, PlanError
from colo.faults.toml_lines import NEST_MAX, too_deep


def load(text: str, name: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """The data of a document, and the line of every key and entry."""
    try:
        import yaml
    except ImportError:
        advice = "pip install PyYAML, or write the plan in TOML"
        raise PlanError(name, (), "a YAML file and no PyYAML", "a TOML file", advice) from None
    try:
        _refuse(text, name)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        raise PlanError(place, (), f"no YAML ({error.problem or error.context})", "a YAML document") from None
    except yaml.YAMLError as error:
        raise PlanError(name, (), f"no YAML ({error})", "a YAML document") from None
    except RecursionError:
        too_deep(name)
    reader = _Reader(name, {})
    data = reader.value(root, ()) if root is not None else {}
    if not isinstance(data, dict):
        raise PlanError(f"{name}:1", (), "a list or a value", "keys and values")
    return data, reader.lines


def _refuse(text: str, name: str) -> None:
    """Raise for what makes a document more than it seems, before anything is built."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        opens = isinstance(event, yaml.CollectionStartEvent)
        depth += opens - isinstance(event, yaml.CollectionEndEvent)
        if depth > NEST_MAX:
            too_deep(f"{name}:{line}")
        if getattr(event, "anchor", None) is not None:
            raise PlanError(f"{name}:{line}", (), "an anchor or an alias", "values", "write them out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise PlanError(f"{name}:{line}", (), f"the tag {tag}", "values without tags")


class _Reader:
    """Nodes to data; ``lines`` fills up."""

    def __init__(self, name: str, lines: dict[Path, int]) -> None:
        import yaml

        self.name, self.lines = name, lines
        self._scalars = yaml.constructor.SafeConstructor()

    def value(self, node: Any, path: Path) -> Any:
        import yaml

        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(inner, (*path, number)) for number, inner in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            try:
                return self._scalars.construct_object(node)
            except (ValueError, yaml.YAMLError):
                raise PlanError(f"{self.name}:{line}", path, repr(node.value)[:60], "a value") from None
        found: dict[str, Any] = {}
        for key_node, inner in node.value:
            key_line = key_node.start_mark.line + 1
            place = f"{self.name}:{key_line}"
            if key_node.tag != "tag:yaml.org,2002:str":
                raise PlanError(place, path, "a key that is no text", "text", "quote it")
            key = str(key_node.value)
            if key in found:
                raise PlanError(place, (*path, key), "this key again", "each key once")
            self.lines[(*path, key)] = key_line
            found[key] = self.value(inner, (*path, key))
        return found

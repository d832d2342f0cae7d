"""YAML as most people read it: by the core rules of YAML 1.2, without aliases or tags that build.

In YAML 1.1, which the library reads, `1:30` is 90, `1_0` is 10, `010` is 8, `no` is false, and a
few lines of aliases unfold to gigabytes. Here these are texts, and aliases are refused.
"""

import re
from typing import Any

import yaml

from ..errors import ExciseError, shown
from .reading import DEPTH, DIGITS


class _Loader(yaml.BaseLoader):
    """Scalars become None, truth values, numbers and texts; nothing else can be made."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise ExciseError(
                f"line {event.start_mark.line + 1} is an alias (*{shown(event.anchor)[1:-1]}), "
                "which is not read: write its value out"
            )
        self.depth += 1
        if self.depth > DEPTH:
            raise ExciseError(f"it is nested too deeply: {DEPTH} levels are read")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is given twice: YAML would keep the last and drop the other's rules."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for key in dict.fromkeys(keys) if keys.count(key) > 1), None):
            line = node.start_mark.line + 1
            raise ExciseError(f"{shown(twice)[1:-1]} is given twice (from line {line} on): join "
                              "the two")  # fmt: skip
        return super().construct_mapping(node, deep)


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number of {len(text)} digits is too long")
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_SCALARS: dict[str, tuple[str, str, Any]] = {
    "null": (r"~|null|Null|NULL|", "~nN\0", lambda _text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789", _whole),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
        lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    ),
    "str": ("", "", str),
}
"""By tag: what is read as it (section 10.3.2 of YAML 1.2.2), how it begins, what it becomes."""


def _tag(name: str) -> str:
    return f"tag:yaml.org,2002:{name}"


def _constructor(make: Any) -> Any:
    return lambda loader, node: make(loader.construct_scalar(node))


def _refuse(_loader: Any, node: yaml.Node) -> None:
    raise ExciseError(
        f"line {node.start_mark.line + 1} has the tag {shown(node.tag)}: leave it out"
    )


for _name, (_pattern, _begin, _make) in _SCALARS.items():
    if _pattern:
        _first = [c if c != "\0" else "" for c in _begin]
        _Loader.add_implicit_resolver(_tag(_name), re.compile(rf"^(?:{_pattern})$"), _first)
    _Loader.add_constructor(_tag(_name), _constructor(_make))
_nested: Any = _Loader.yaml_constructors
_nested[_tag("map")] = lambda loader, node: loader.construct_mapping(node, deep=True)
_nested[_tag("seq")] = lambda loader, node: loader.construct_sequence(node, deep=True)
_nested[None] = _refuse


def parse_yaml(text: str) -> Any:
    """Parse a YAML document of others.

    Raises:
        ExciseError: It is no YAML, or holds aliases, tags, a key twice, or numbers too long.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ExciseError(f"it is no YAML: {shown(' '.join(str(error).split()), 200)[1:-1]}") from (
            error
        )
    except (ValueError, TypeError, RecursionError) as error:  # a tag's value, a key that is a list
        raise ExciseError(f"it cannot be read: {shown(str(error), 120)[1:-1]}") from error

# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies from the schemas of a server's own ``/openapi.json``.

A value is now and then replaced by one of another type: what a schema rules out has to be refused,
not only what it allows be served.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

#: One value of a schema in this many is of any type at all.
JUNK_ONE_IN = 12
MAX_DEPTH = 4


def nested(depth: int, leaf: Any = 1) -> Any:
    """A list in a list in a list."""
    for _ in range(depth):
        leaf = [leaf]
    return leaf


#: Values of every JSON type, at and beyond their edges.
JUNK: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63) - 1,
    2**64,
    10**30,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    "a",
    "0",
    "null",
    "\x00",
    "\ud800",
    "\U0001f600",
    "x" * 3000,
    [],
    [None],
    [[]],
    ["a", 1, None],
    [-1],
    nested(40),
    {},
    {"a": None},
    {"": ""},
    {"a": {"b": {"c": [1, {"d": 2}]}}},
    {"\ud800": "\udfff"},
)
TEXTS = (
    "a",
    "hello",
    "Box 3 holds 7 apples.",
    "",
    " ",
    "\n\n",
    "é",
    "\U0001f600",
    "\ud800",
    "\x00",
)

junk = st.sampled_from(JUNK)
texts = st.sampled_from(TEXTS)
integers = st.sampled_from((0, 1, 2, 3, 5, 8, -1, 100, 2**31, 2**63))
numbers = st.one_of(integers, st.sampled_from((0.0, 0.5, 1.0, -1.0, 1e30, float("nan"))))


def pick(*values: Any) -> st.SearchStrategy:
    return st.sampled_from(values)


def spread(*pairs: tuple[Any, int]) -> st.SearchStrategy:
    """Values, each as often as its number says."""
    return st.sampled_from([value for value, times in pairs for _ in range(times)])


def chance(draw, one_in: int) -> bool:
    """True about once in `one_in`; hypothesis prefers the ends of a range, so take its middle."""
    return draw(st.integers(0, one_in - 1)) == one_in // 2


def often(strategy: st.SearchStrategy, other: st.SearchStrategy, one_in: int = JUNK_ONE_IN):
    """`strategy`, and `other` about once in `one_in`."""
    return st.sampled_from((*([strategy] * (one_in - 1)), other)).flatmap(lambda chosen: chosen)


class Schemas:
    """The components of one OpenAPI document.

    Parameters
    ----------
    document : mapping
        A server's ``/openapi.json``.
    fields : mapping
        Strategies for fields of these names, wherever a schema has them: values that matter to a
        scheduler are rarer in a schema than in trouble.
    """

    def __init__(self, document: Mapping[str, Any], fields: Mapping[str, st.SearchStrategy]):
        self.components = document.get("components", {}).get("schemas", {})
        self.fields = dict(fields)
        self._made: dict[tuple[str, int], st.SearchStrategy] = {}

    def properties(self, name: str) -> list[str]:
        return sorted(self.components[name].get("properties", ()))

    def named(self, name: str, depth: int = 0) -> st.SearchStrategy:
        """Values of a component."""
        key = (name, depth)
        if key not in self._made:
            self._made[key] = st.deferred(lambda: self.values(self.components[name], depth))
        return self._made[key]

    def field(self, component: str, name: str, depth: int = 0) -> st.SearchStrategy:
        """Values of one property of a component."""
        return self._field(name, self.components[component]["properties"][name], depth)

    def _field(self, name: str, schema: Mapping[str, Any], depth: int) -> st.SearchStrategy:
        if name in self.fields:
            return often(self.fields[name], st.one_of(self.values(schema, depth), junk))
        return often(self.values(schema, depth), junk)

    def values(self, schema: Mapping[str, Any], depth: int = 0) -> st.SearchStrategy:
        """Values that a schema allows, junk among them at deeper levels."""
        if depth > MAX_DEPTH:
            return junk
        if "$ref" in schema:
            return self.named(schema["$ref"].rsplit("/", 1)[1], depth + 1)
        for key in ("anyOf", "oneOf", "allOf"):
            if schema.get(key):
                return st.one_of([self.values(one, depth) for one in schema[key]])
        if "const" in schema:
            return st.just(schema["const"])
        if schema.get("enum"):
            return st.sampled_from(schema["enum"])
        kind = schema.get("type")
        if kind == "string":
            return texts
        if kind == "integer":
            return integers
        if kind == "number":
            return numbers
        if kind == "boolean":
            return st.booleans()
        if kind == "null":
            return st.none()
        if kind == "array":
            items = self.values(schema.get("items") or {}, depth + 1)
            return st.lists(items, max_size=3)
        if kind == "object" and schema.get("properties"):
            return self.objects(schema, depth)
        if kind == "object":
            return st.dictionaries(texts, junk, max_size=2)
        return junk

    def objects(self, schema: Mapping[str, Any], depth: int = 0) -> st.SearchStrategy:
        """Objects with what is required and a few of the other properties."""
        properties = schema["properties"]
        required = [name for name in schema.get("required", ()) if name in properties]
        optional = sorted(set(properties) - set(required))

        @st.composite
        def draw_object(draw):
            names = list(required)
            if optional:
                names += draw(some_of(optional))
            return {name: draw(self._field(name, properties[name], depth + 1)) for name in names}

        return draw_object()


def some_of(names, sizes=(0, 0, 1, 1, 2, 3)) -> st.SearchStrategy:
    """A few different names."""
    choices = list(names)
    lists = {
        size: st.lists(
            st.sampled_from(choices),
            min_size=min(size, len(choices)),
            max_size=min(size, len(choices)),
            unique=True,
        )
        for size in sizes
    }
    return st.sampled_from(sizes).flatmap(lists.__getitem__)

# SPDX-License-Identifier: Apache-2.0
"""Run by the tools' Python: which metrics do PromQL expressions name?

JSON in: ``{"where": "expression"}``. JSON out: ``{"where": ["metric", ...]}``.
An expression that does not parse ends it with its place and the parser's message.
"""

import json
import sys

import promql_parser


def names(node) -> set[str]:
    """Metric names of every selector below a node of the parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        if not node.name:
            raise ValueError("a selector without a metric name")
        return {node.name}
    parts = [getattr(node, part, None) for part in ("expr", "lhs", "rhs", "param")]
    parts += [getattr(node, "vector_selector", None), *getattr(node, "args", [])]
    return set().union(*(names(part) for part in parts if part is not None))


def main() -> None:
    found = {}
    for where, expression in json.load(sys.stdin).items():
        try:
            found[where] = sorted(names(promql_parser.parse(expression)))
        except ValueError as error:
            sys.exit(f"{where}: {error}: {expression}")
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

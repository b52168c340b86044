# SPDX-License-Identifier: Apache-2.0
"""The chart's README names every value, with the comment above it."""

import pytest
import yaml

from programs import load_program

chart_readme = load_program("scripts/chart_readme.py")

VALUES = """\
# About the group.
group:
  # One line,
  # and a second | with a bar.
  name: x
# The server's.
config:
  kv-budget: 1
"""


def test_a_row_has_the_path_the_type_the_default_and_the_comment():
    assert [value.row for value in chart_readme.values_of(VALUES)] == [
        "| group | object |  | About the group. |",
        '| group.name | string | `"x"` | One line, and a second \\| with a bar. |',
        "| config | object | see values.yaml | The server's. |",
    ]


def test_a_value_without_a_comment_is_named():
    with pytest.raises(ValueError, match=r"values\.yaml: group\.name has no comment"):
        chart_readme.values_of(VALUES.replace("  # and a second | with a bar.\n", "\n"))


def test_every_value_of_the_chart_has_a_row():
    text = (chart_readme.CHART / "values.yaml").read_text()
    keys = {value.key for value in chart_readme.values_of(text)}
    for key, value in yaml.safe_load(text).items():
        below = [f"{key}.{name}" for name in value] if chart_readme.is_group(key, value) else [key]
        for name in below:
            assert any(k == name or k.startswith(f"{name}.") for k in keys), name

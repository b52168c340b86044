# SPDX-License-Identifier: Apache-2.0
"""The YAML blocks of docs/deploy: values render to valid objects, objects are valid."""

from __future__ import annotations

import re

import pytest
import yaml

from manifests import CUSTOM, DEPLOY, helm, problems

pytestmark = pytest.mark.deploy
PAGES = DEPLOY.parent / "docs/deploy"
BLOCK = re.compile(r"^ *```yaml\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
#: Kinds of other projects; their fields were compared with the CRDs by hand, once.
BY_HAND = {
    *("DestinationRule", "ServingRuntime", "InferenceService", "ExternalSecret", "NodePool"),
}


def blocks() -> list[tuple[str, str]]:
    return [
        (page.stem, text)
        for page in sorted(PAGES.glob("*.md"))
        for text in BLOCK.findall(page.read_text(encoding="utf-8"))
    ]


VALUES = [
    pytest.param(text, id=f"{page} {number}")
    for number, (page, text) in enumerate(blocks())
    if text.startswith("# values\n")
]


@pytest.mark.parametrize("text", VALUES)
def test_values_on_the_pages_render_to_valid_objects(tools, text):
    found = problems(tools, helm(tools, yaml.safe_load(text)))
    # A volume from an image is newer than the oldest Kubernetes that the schemas are of.
    known = [problem for problem in found if " 1.27 spec.template.spec.volumes." in problem]
    assert len(known) == text.count("reference:")
    assert set(found) == set(known)


def test_objects_on_the_pages_are_valid(tools):
    objects = [
        content
        for _, text in blocks()
        if "apiVersion:" in text and "kind:" in text
        for content in yaml.safe_load_all(text)
    ]
    assert all(isinstance(content, dict) for content in objects) and objects
    judged = [content for content in objects if content["kind"] not in BY_HAND]
    assert problems(tools, judged) == []
    assert {c["kind"] for c in objects} - BY_HAND - set(CUSTOM) <= {"Secret", "Job"}

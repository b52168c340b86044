# SPDX-License-Identifier: Apache-2.0
"""Write what deploy/kustomize takes over from the Helm chart, and copies of files in both.

    python scripts/render_manifests.py            # writes
    python scripts/render_manifests.py --check    # only compares; 1 if something is out of date

The chart is the source. An object is written to the base, or to the component that adds it;
kustomization.yaml files and patches are written by hand, and tests/deploy compares every overlay
with the chart's output for the values of the same name in the chart's examples/.

Needs the interpreter of the tools (`make tools`), which has the Helm SDK.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import helm_python
import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy/helm/sglang-longflow"
KUSTOMIZE = ROOT / "deploy/kustomize"
NAME = NAMESPACE = "longflow"

#: Component: the example that has its objects, and the components whose objects it also has.
COMPONENTS = {
    "monitoring": ("monitoring", ()),
    "keda": ("keda", ("monitoring",)),
    "hpa": ("hpa", ("monitoring",)),
    "router": ("router", ()),
    "service-monitor": ("service-monitor", ()),
    "inference-pool": ("inference-pool", ()),
    "router-monitoring": ("router-keda", ("monitoring", "keda", "router")),
}
#: Copies, and what of: a chart and a kustomization can only read files of their own folder.
COPIES = {
    CHART / "files/rules.yaml": ROOT / "deploy/monitoring/rules.yaml",
    KUSTOMIZE / "components/hpa/prometheus-adapter.yaml": CHART / "files/prometheus-adapter.yaml",
}
# What only makes sense under Helm: its labels, its annotations, the hash of the configuration
# (kustomize gives the ConfigMap a name with one), and a subject's namespace, which kustomize writes
# where there is none and otherwise leaves as it is.
HELM_LINES = re.compile(
    r"^ +(app\.kubernetes\.io/managed-by|helm\.sh/chart|checksum/config): .*\n"
    r"|^ +annotations:\n( +#.*\n)* +helm\.sh/resource-policy: .*\n"
    rf"|^    namespace: {NAMESPACE}\n"
    r"|^ *\n",
    re.MULTILINE,
)
NOTE = "# Written by scripts/render_manifests.py from the Helm chart.\n"


def render(example: str | None) -> dict[str, str]:
    """Text of every document by ``Kind/name``, in the chart's order."""
    values = None
    if example is not None:
        values = yaml.safe_load((CHART / f"examples/{example}.yaml").read_text(encoding="utf-8"))
    documents = {}
    templates = helm_python.Chart.load(str(CHART)).render(values, name=NAME, namespace=NAMESPACE)
    for path in sorted(templates):
        if path.endswith(".txt"):
            continue
        for text in re.split(r"^---\n", templates[path], flags=re.MULTILINE):
            parsed = yaml.safe_load(text)
            if parsed is not None:
                key = f"{parsed['kind']}/{parsed['metadata']['name']}"
                documents[key] = HELM_LINES.sub("", text)
    return documents


def wanted() -> dict[Path, str]:
    """Content of every file that this script writes."""
    base = render(None)
    config = yaml.safe_load(base.pop(f"ConfigMap/{NAME}-config"))
    files = {KUSTOMIZE / "base/config.yaml": NOTE + config["data"]["config.yaml"]}
    for key, text in base.items():
        files[KUSTOMIZE / f"base/{key.split('/')[0].lower()}.yaml"] = NOTE + text
    for component, (example, others) in COMPONENTS.items():
        known = set(base) | {f"ConfigMap/{NAME}-config"}
        for other in others:
            known |= set(render(COMPONENTS[other][0]))
        added = [text for key, text in render(example).items() if key not in known]
        files[KUSTOMIZE / f"components/{component}/objects.yaml"] = NOTE + "---\n".join(added)
    files |= {copy: source.read_text(encoding="utf-8") for copy, source in COPIES.items()}
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, 1 if out of date")
    check = parser.parse_args().check
    stale = [
        (path, text)
        for path, text in wanted().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Write the tables of docs/results/ (CSV) from the packed raw files in docs/results/raw/.

    python scripts/pack_results.py                  # write every CSV again
    python scripts/pack_results.py --check          # exit 1 if one is not current
    python scripts/pack_results.py --add FOLDER --kind throughput --gpu H200 [--card 0]

    python scripts/pack_results.py --add FOLDER --name 2026-12-01-gpu-tests    # with its run.json

`--add` packs what a benchmark wrote, notes where it ran, and writes the CSVs again. An archive
holds the raw files and `run.json`: a list of parts, each with the files, the kind of measurement,
date, commit and GPU. A part may name the policies and budgets that it stands for; a record belongs
to the first part that matches.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import fnmatch
import io
import json
import lzma
import re
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
RESULTS = ROOT / "docs" / "results"
MANIFEST = "run.json"
LARGEST_BYTES = 500_000
RUN = ("date", "commit", "gpu")
MEASURED = ("metric", "value", "unit", "source")
COLUMNS = {
    "throughput": (*RUN, "card", "geometry", "pool", "workload", "system", "budget", "part"),
    "accuracy": (*RUN, "workload", "policy", "budget", "part"),
    "divergence": (*RUN, "workload", "policy", "budget", "part"),
    "kernels": (*RUN, "heads", "batch", "row_tokens", "system", "part"),
    "rules": (*RUN, "model", "training", "tokens", "seed", "problems", "budget", "rule"),
    "gpu-tests": (*RUN, "test", "decode"),
}
#: Names of points in throughput_points.yaml, and what a reader calls the workload.
WORKLOADS = {
    "A": "16k answers",
    "A-8b": "16k answers",
    "B": "16k answers",
    "C": "4k answers",
    "rkv": "1k answers",
    "rkv-prof": "1k answers",
    "ample": "8 requests",
    "inert": "22 requests",
    "step": "equal resident tokens",
    "policy-64": "64 full rows",
    "policy-8": "8 full rows",
    "cut-3200": "8 prompts of 32k",
    "cut-full": "8 prompts of 32k",
}
UNITS = {
    "output_tokens_per_s": "tokens/s",
    "running_mean": "requests",
    "running_peak": "requests",
    "retracted_requests": "requests",
    "finished_requests": "requests",
    "pool_tokens_mean": "tokens",
    "window_s": "s",
    "cuda_graph_share": "share",
    "inter_token_ms_mean": "ms",
    "inter_token_ms_p99": "ms",
    "first_token_s_median": "s",
    "first_token_s_last": "s",
    "step_ms_median": "ms",
    "batch": "requests",
}
#: Columns of bench_kernels.py: whose time it is.
TIMES = {
    "flashinfer": "flashinfer",
    "longflow": "longflow",
    "not_full": "rows not full",
    "kv_head": "victim per KV head",
    "peak": "longflow-peak",
    "novel": "longflow-novel",
}
STEPS_PER_LINE = 40  # SGLang logs a line every 40 decode steps


@dataclass(frozen=True)
class Part:
    """Files of one archive that were measured under the same conditions."""

    kind: str
    files: str
    date: str
    commit: str
    gpu: str
    card: str = ""
    workload: str = ""
    part: str = ""
    windows: tuple[tuple[int, int], ...] = ()
    policies: tuple[str, ...] = ()
    budgets: tuple[int, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    results: tuple[tuple[str, str, str, str], ...] = ()

    def holds(self, policy: str, budget: int) -> bool:
        """Whether a record of this policy and budget is one of this part."""
        return (not self.policies or policy in self.policies) and (
            not self.budgets or budget in self.budgets
        )


@dataclass(frozen=True)
class Archive:
    """The files of one packed run, and its parts."""

    name: str
    files: dict[str, bytes]
    parts: tuple[Part, ...]

    @classmethod
    def read(cls, path: Path) -> Archive:
        with tarfile.open(path) as tar:
            files = {
                member.name: file.read()
                for member in tar.getmembers()
                if (file := tar.extractfile(member)) is not None
            }
        described = json.loads(files.pop(MANIFEST))["parts"]
        parts = tuple(
            Part(**{key: _frozen(value) for key, value in part.items()}) for part in described
        )
        return cls(path.name.removesuffix(".tar.xz"), files, parts)

    def of(self, part: Part) -> Iterator[tuple[str, bytes]]:
        """Names and contents of a part's files, sorted."""
        names = sorted(fnmatch.filter(self.files, part.files))
        if not names:
            raise SystemExit(f"{self.name}: no file matches {part.files}")
        return ((name, self.files[name]) for name in names)

    def source(self, name: str) -> str:
        return f"{self.name}:{name}"


def _frozen(value: Any) -> Any:
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value


def _table(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def throughput(archive: Archive, part: Part) -> Iterator[dict[str, Any]]:
    """Rows of one JSON per point and system, and what the scheduler's own log adds."""
    for name, content in archive.of(part):
        result = json.loads(content)
        # The Hugging Face loop has no pool, and no name.
        point = result.get("name", "A")
        workload = "16k answers" if point.startswith("sweep-") else WORKLOADS.get(point, point)
        base = {
            "card": part.card,
            "geometry": result["geometry"],
            "pool": result.get("pool") or "",
            "workload": part.workload or workload,
            "system": result.get("system", "transformers"),
            "budget": result.get("budget", 0),
            "part": part.part,
        }
        source = archive.source(name)
        for metric, unit in UNITS.items():
            if result.get(metric) is not None:
                yield {**base, **_measured(metric, result[metric], unit, source)}
        log = archive.files.get(name.removesuffix(".json") + ".csv")
        if log is None:
            continue
        source = archive.source(name.removesuffix(".json") + ".csv")
        lines = [
            {key: float(value) for key, value in line.items() if key != "cuda_graph"}
            for line in _table(log)
        ]
        if point.startswith("policy-") or point == "step":
            for told, value in _step_times(lines, point):
                step = {**base, "part": ", ".join(filter(None, (part.part, told)))}
                yield {**step, **_measured("step_ms_median", value, "ms", source)}
        if base["system"] == "stock" and part.windows:
            retracted = _table(archive.files[name.removesuffix(".json") + "-retracted.csv"])
            for begin, end in part.windows:
                shown = {**base, "part": f"log, {begin} to {end} s"}
                for metric, value in _window(lines, retracted, begin, end).items():
                    yield {**shown, **_measured(metric, value, UNITS[metric], source)}


def _measured(metric: str, value: Any, unit: str, source: str) -> dict[str, Any]:
    return {"metric": metric, "value": value, "unit": unit, "source": source}


def _step_times(lines: list[dict[str, float]], point: str) -> Iterator[tuple[str, float]]:
    """Median decode step in ms; the first line of a run counts the time before it, too."""
    full = max(line["running"] for line in lines)
    steps = [line for line in lines[1:] if line["running"] == full]
    yield "", _median_step(steps)
    if point == "step":  # stock's rows grow: those lines beside our 204,800 resident tokens
        near = [line for line in steps if abs(line["pool_tokens"] - 204_800) < 2_560]
        if near:
            yield "204,800 tokens", _median_step(near)


def _median_step(lines: list[dict[str, float]]) -> float:
    return round(statistics.median(1e3 * x["running"] / x["tokens_per_s"] for x in lines), 3)


def _window(
    lines: list[dict[str, float]], retracted: list[dict[str, str]], begin: int, end: int
) -> dict[str, float]:
    """What the log's lines say about [begin, end) s: a line is 40 steps of so many rows."""
    seen = [line["running"] for line in lines if begin <= line["time"] < end]
    gone = (int(line["requests"]) for line in retracted if begin < int(line["time"]) <= end)
    return {
        "output_tokens_per_s": round(STEPS_PER_LINE * sum(seen) / (end - begin), 1),
        "running_mean": round(statistics.fmean(seen), 3),
        "running_peak": int(max(seen)),
        "retracted_requests": sum(gone),
    }


def accuracy(archive: Archive, part: Part) -> Iterator[dict[str, Any]]:
    """Share of right answers with its 95 % interval, of `longflow eval`'s answers.jsonl."""
    from sglang_longflow.measure.accuracy.records import Record
    from sglang_longflow.measure.accuracy.summary import summarise

    for name, content in archive.of(part):
        groups: dict[str, list[Record]] = {}
        for text in content.decode().splitlines():
            record = json.loads(text)
            groups.setdefault(record.pop("rule", ""), []).append(Record(**record))
        for rule, records in groups.items():
            for line in summarise(records):
                if not part.holds(line.variant, line.budget):
                    continue
                base = {
                    "workload": part.workload,
                    "policy": line.variant,
                    "budget": line.budget,
                    "part": rule or part.part,
                }
                values = (
                    ("answers", line.answers, "answers"),
                    ("accuracy", line.accuracy, "share"),
                    ("accuracy_low", line.accuracy_low, "share"),
                    ("accuracy_high", line.accuracy_high, "share"),
                    ("overwrote", line.overwrote, "share"),
                    ("finished", line.finished, "share"),
                    ("mean_generated_tokens", line.mean_generated_tokens, "tokens"),
                )
                yield from _many(base, values, archive.source(name))


def divergence(archive: Archive, part: Part) -> Iterator[dict[str, Any]]:
    """KL and agreement with full KV, of `longflow eval --task text:...`'s answers.jsonl."""
    from sglang_longflow.measure.divergence.summary import TextRecord, summarise_texts

    for name, content in archive.of(part):
        records = [TextRecord(**json.loads(line)) for line in content.decode().splitlines()]
        for line in summarise_texts(records):
            if not part.holds(line.variant, line.budget):
                continue
            base = {
                "workload": part.workload,
                "policy": line.variant,
                "budget": line.budget,
                "part": part.part,
            }
            values = (
                ("texts", line.texts, "texts"),
                ("kl", line.kl, "nats/token"),
                ("kl_low", line.kl_low, "nats/token"),
                ("kl_high", line.kl_high, "nats/token"),
                ("agreement", line.agreement, "share"),
            )
            yield from _many(base, values, archive.source(name))


def _many(
    base: dict[str, Any], values: Iterable[tuple[str, Any, str]], source: str
) -> Iterator[dict[str, Any]]:
    for metric, value, unit in values:
        if value is not None:
            shown = round(value, 6) if isinstance(value, float) else value
            yield {**base, **_measured(metric, shown, unit, source)}


def kernels(archive: Archive, part: Part) -> Iterator[dict[str, Any]]:
    """Times of bench_kernels.py in microseconds, or the lines of the L2 experiment."""
    for name, content in archive.of(part):
        source = archive.source(name)
        if name.endswith(".txt"):
            yield from _l2_lines(content.decode(), source)
            continue
        for line in _table(content):
            shape = {
                "heads": line["heads"],
                "batch": line["batch"],
                "row_tokens": line["row_tokens"],
                "part": part.part,
            }
            for column, system in TIMES.items():
                for statistic in ("median", "p20", "p80"):
                    if value := line.get(f"{column}_{statistic}"):
                        measured = _measured(f"{statistic}_us", float(value), "us", source)
                        yield {**shape, "system": system, **measured}
            copy = _measured(
                "share_of_copy_rate", float(line["share_of_copy_rate"]), "share", source
            )
            yield {**shape, "system": "longflow", **copy}


def _l2_lines(text: str, source: str) -> Iterator[dict[str, Any]]:
    """Section 2 of the L2 log: full rows' time as a share of FlashInfer's, by what is set aside.

    `kept` marks the scores up to a place, `all` marks every one; where `kept` is a dash there was
    no place to end at.
    """
    if found := re.search(r"copy ([\d.]+) TB/s", text):
        copied = _measured("copy_rate", float(found[1]), "TB/s", source)
        yield {"system": "device-to-device copy", **copied}
    section = text.split("\n# 2.")[1].split("\n# 3.")[0]
    shape: dict[str, Any] = {}
    for line in section.splitlines():
        if found := re.match(r"== \((\d+), (\d+), (\d+)\) batch (\d+) rows (\d+)", line):
            heads = "/".join(found.groups()[:3])
            shape = {"heads": heads, "batch": found[4], "row_tokens": found[5]}
        found = re.match(r"  limit \d+ \((\d+)\):.* kept (\S+) .*?all (\S+)", line)
        if found:
            ratio = float(found[3] if found[2] == "-" else found[2])
            measured = _measured("times_flashinfer", ratio, "times", source)
            part = f"L2 set aside: {found[1]} MB"
            yield {**shape, "system": "longflow", "part": part, **measured}


def rules(archive: Archive, part: Part) -> Iterator[dict[str, Any]]:
    """Lines that explore_scores.py wrote; wrong tokens per million, KL in nats per token."""
    units = {
        "solved": "share",
        "search_solved": "share",
        "machine": "share",
        "affine": "share",
        "search": "share",
        "wrong": "tokens per million",
        "kl": "nats/token",
        "top1": "share",
    }
    for name, content in archive.of(part):
        for line in _table(content):
            base = {
                column: line.get(column) or part.facts.get(column, "")
                for column in ("model", "training", "tokens", "seed", "problems", "budget", "rule")
            }
            base["training"] = line.get("training_steps") or base["training"]
            for metric, unit in units.items():
                if line.get(metric):
                    measured = _measured(metric, float(line[metric]), unit, archive.source(name))
                    yield {**base, **measured}


def gpu_tests(archive: Archive, part: Part) -> Iterator[dict[str, Any]]:
    """Results that the part lists: test, decode, result, and the words of the log that say so."""
    for name, content in archive.of(part):
        source = archive.source(name)
        for test, decode, result, words in part.results:
            if words not in content.decode():
                raise SystemExit(f"{source} does not say {words!r}")
            yield {"test": test, "decode": decode, **_measured("result", result, "", source)}


KINDS = {
    "throughput": throughput,
    "accuracy": accuracy,
    "divergence": divergence,
    "kernels": kernels,
    "rules": rules,
    "gpu-tests": gpu_tests,
}


def tables(folder: Path) -> dict[str, str]:
    """The text of each kind's CSV, from all archives of a folder, oldest first."""
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for path in sorted(folder.glob("*.tar.xz")):
        archive = Archive.read(path)
        claimed: set[tuple[Any, ...]] = set()
        for part in archive.parts:
            run = {"date": part.date, "commit": part.commit, "gpu": part.gpu}
            for row in KINDS[part.kind](archive, part):
                columns = COLUMNS[part.kind]
                named = (str(row.get(name, "")) for name in columns if name not in RUN)
                key = (part.kind, row["source"], row["metric"], *named)
                if key not in claimed:  # the first part that names a record has it
                    claimed.add(key)
                    rows[part.kind].append({**run, **row})
    texts = {}
    for kind, found in rows.items():
        out = io.StringIO()
        writer = csv.DictWriter(out, (*COLUMNS[kind], *MEASURED), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
        texts[kind] = out.getvalue()
    return texts


def pack(files: dict[str, bytes], parts: list[dict[str, Any]], path: Path) -> None:
    """Write an archive whose bytes depend on the contents alone."""
    described = json.dumps({"parts": parts}, indent=1).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    compressed = lzma.open(path, "wb", preset=9 | lzma.PRESET_EXTREME)
    with compressed, tarfile.open(fileobj=compressed, mode="w") as tar:
        for name, content in sorted({**files, MANIFEST: described}.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    if path.stat().st_size > LARGEST_BYTES:
        size = path.stat().st_size
        path.unlink()
        raise SystemExit(f"{path.name} would be {size:,} bytes, more than {LARGEST_BYTES:,}")


def add(args: argparse.Namespace, raw: Path) -> None:
    """Pack one folder of raw files, described by its `run.json` or by the options."""
    files = {
        str(path.relative_to(args.add)): path.read_bytes()
        for path in sorted(args.add.rglob("*"))
        if path.is_file()
    }
    described = files.pop(MANIFEST, None)
    parts = [part_of(args)] if described is None else json.loads(described)["parts"]
    name = args.name or "{date}-{gpu}-{kind}".format(**parts[0]).lower().replace(" ", "-")
    path = raw / f"{name}.tar.xz"
    if path.exists():
        raise SystemExit(f"{path} exists; --name gives the run another name")
    pack(files, parts, path)
    try:
        tables(raw)
    except BaseException:
        path.unlink()
        raise


def part_of(args: argparse.Namespace) -> dict[str, str]:
    """One part for all files; date, commit and GPU of kernels are those in their JSON."""
    noted = args.add / "kernels.json"
    found = json.loads(noted.read_text()) if args.kind == "kernels" and noted.exists() else {}
    commit = args.commit or found.get("commit", "").removeprefix("commit ")
    if not commit:
        command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    gpu = args.gpu or found.get("device", "").removeprefix("NVIDIA ")
    if not gpu:
        raise SystemExit("--gpu: which one was it?")
    wanted = {"throughput": "*.json", "kernels": "*kernels.csv", "rules": "*.csv"}
    part = {
        "kind": args.kind,
        "files": wanted.get(args.kind, "*.jsonl"),
        "date": args.date or found.get("date") or datetime.date.today().isoformat(),
        "commit": commit,
        "gpu": gpu,
        "card": args.card,
        "workload": args.workload,
    }
    return {name: value for name, value in part.items() if value}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if a CSV is not current")
    parser.add_argument("--add", type=Path, metavar="FOLDER", help="pack this run first")
    parser.add_argument("--kind", choices=[kind for kind in KINDS if kind != "gpu-tests"])
    parser.add_argument("--gpu", help="such as H200")
    parser.add_argument("--card", help="which one of several, such as 0")
    parser.add_argument("--date", help="default: today")
    parser.add_argument("--commit", help="default: this checkout's")
    parser.add_argument("--workload", help="of answers or texts, such as gsm8k")
    parser.add_argument("--name", help="of the archive; default: date-gpu-kind")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: docs/results")
    args = parser.parse_args()
    if args.add:
        if not args.kind and not (args.add / MANIFEST).exists():
            parser.error(f"--add needs --kind, or a {MANIFEST} in the folder")
        add(args, args.out / "raw")
    stale = []
    for kind, text in tables(args.out / "raw").items():
        path = args.out / f"{kind}.csv"
        if not path.exists() or path.read_text() != text:
            stale.append(path)
            if not args.check:
                path.write_text(text)
    for path in stale:
        print(f"{path}: {'is not what the archives hold' if args.check else 'written'}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())

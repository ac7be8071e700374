"""The account of `rlhf data`: what came in, what was removed by which rule, what was masked, what went out."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_ray import __version__
from rlhf_ray.config.jobs.cleaning import DataJobConfig
from rlhf_ray.data.bad_rows import ReadReport
from rlhf_ray.data.cleaning.cleaner import Cleaned, Removed
from rlhf_ray.data.loading import NOTHING_ASKED
from rlhf_ray.jobs.data.parts import OutputPart, Parts
from rlhf_ray.jobs.data.sieve import Sieve
from rlhf_ray.jobs.data.sources import OpenSource

MANIFEST = "manifest.json"


class Account:
    """Counts of one job; `finish` writes them as manifest.json."""

    def __init__(self, config: DataJobConfig, sources: list[OpenSource]) -> None:
        self._config = config
        self._sources = sources
        self._removed: dict[str, Counter[str]] = {source.name: Counter() for source in sources}
        self._masked: dict[str, Counter[str]] = {source.name: Counter() for source in sources}
        self._masked_rows: Counter[str] = Counter()
        self.classifiers: dict[str, dict[str, float]] = {}
        """What was trained, on how many examples, and how well it does on those held out."""
        self.index_bytes = 0
        self.kept = 0
        """Rows; known at the end."""
        self._parts: list[OutputPart] = []
        self._groups: list[int] = []
        """Prompts of each group of near ones."""
        self._unchecked = 0
        """Prompts, or groups of them, that were joined with others without a comparison."""
        self._wanted: dict[str, int] | None = None

    def add(self, source: OpenSource, batch: Cleaned, removed: list[Removed]) -> None:
        """Count a batch."""
        report = source.report
        report.rows += batch.rows
        if batch.empty:
            report.left_out[NOTHING_ASKED] += batch.empty
        for one in batch.bad:
            report.add_bad(one.place, one.detail)
        self._removed[source.name].update(one.rule for one in removed)
        self._masked[source.name].update(batch.masked)
        self._masked_rows[source.name] += batch.masked_rows

    def close(self, source: OpenSource) -> None:
        """Judge a source when all of it is read.

        Raises:
            BadInput: too many of its rows are bad, or it has none.
        """
        source.report.check()

    def finish(self, sieve: Sieve, parts: Parts, folder: Path) -> None:
        """Write the manifest."""
        self._parts, self._wanted, self.kept = parts.parts, parts.wanted, sieve.kept
        if sieve.groups is not None:
            self._groups, self._unchecked = sieve.groups.sizes(), sieve.groups.unchecked
        self.index_bytes = sieve.finder.near.bytes if sieve.finder else 0
        text = json.dumps(self._manifest(sieve, parts), ensure_ascii=False, indent=2)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    def _manifest(self, sieve: Sieve, parts: Parts) -> dict[str, Any]:
        removed = sum(self._removed.values(), Counter())
        told: dict[str, Any] = {
            "version": __version__,
            "seed": self._config.seed,
            "sources": [self._source(source) for source in self._sources],
            "rows": sum(source.report.rows for source in self._sources),
            "removed": dict(removed.most_common()),
            "masked": dict(sum(self._masked.values(), Counter()).most_common()),
            "masked_rows": self._masked_rows.total(),
            "kept": sieve.kept,
            "classifiers": self.classifiers,
            "splits": {part.name: _part(part) for part in parts.parts},
        }
        if self._config.classes is not None:
            told["classes"] = sieve.places.totals
        if parts.wanted is not None:
            told["sample"] = {"wanted": parts.wanted, "not_sampled": dict(parts.not_sampled)}
        if sieve.finder is not None:
            near = sieve.finder.near
            told["duplicate_index"] = {
                "bytes": near.bytes,
                "bytes_per_kept_row": round(near.bytes / max(sieve.kept, 1)),
                "rows_with_more_candidates_than_checked": near.unchecked,
                "keys_with_more_rows_than_looked_at": near.index.cut_chains,
            }
        if sieve.groups is not None:
            told["prompt_groups"] = {
                "prompts": sum(self._groups),
                "groups": len(self._groups),
                "largest": max(self._groups, default=0),
                "bytes": sieve.groups.bytes,
                "joined_without_comparison": sieve.groups.unchecked,
            }
        return told

    def _source(self, source: OpenSource) -> dict[str, Any]:
        report: ReadReport = source.report
        return {
            "name": source.name,
            "origin": source.origin,
            "licence": source.licence,
            "layout": source.layout,
            "files": [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for f in source.survey.files],
            "rows": report.rows,
            "bad_rows": report.bad,
            "left_out": dict(report.left_out),
            "removed": dict(self._removed[source.name].most_common()),
            "masked": dict(self._masked[source.name].most_common()),
        }

    def lines(self, seconds: float) -> Iterator[str]:
        """Say what happened, for the console."""
        rows = sum(source.report.rows for source in self._sources)
        for source in self._sources:
            yield from source.report.lines() if source.report.bad else ()
        yield f"{rows:,} rows in {seconds:.1f} s ({rows / max(seconds, 1e-9):,.0f} rows/s), {self.kept:,} kept"
        for rule, count in sum(self._removed.values(), Counter()).most_common():
            yield f"  {count:>8,} removed: {rule}"
        for kind, count in sum(self._masked.values(), Counter()).most_common():
            yield f"  {count:>8,} masked: {kind}"
        for name, measured in self.classifiers.items():
            yield f"  classifier of {name}: " + ", ".join(f"{key} {value:g}" for key, value in measured.items())
        if self._wanted is not None:
            yield "  sample: " + ", ".join(f"{name} {count:,}" for name, count in self._wanted.items())
        for part in self._parts:
            yield f"  {part.file}: {part.rows:,} rows"
            yield from (f"    {count:,} left out: {reason}" for reason, count in part.left_out.items())
        if len(self._groups) < sum(self._groups):
            yield (
                f"  {sum(self._groups):,} prompts in {len(self._groups):,} groups of near ones, each in one part; the "
                f"largest has {max(self._groups):,}"
            )
        if self._unchecked:
            yield (
                f"    {self._unchecked:,} were joined without comparison, for too many are alike to compare each; "
                "those need not be near"
            )
        if self.index_bytes:
            yield f"  duplicate index: {self.index_bytes / max(self.kept, 1):,.0f} bytes for each kept row"


def _part(part: OutputPart) -> dict[str, Any]:
    told: dict[str, Any] = {
        "file": part.file,
        "content": part.content,
        "rows": part.rows,
        "bytes": part.stream.size,
        "sha256": part.stream.digest.hexdigest(),
    }
    if part.classes.keys() - {""}:
        told["classes"] = dict(part.classes.most_common())
    if part.left_out:
        told["left_out"] = dict(part.left_out)
    return told

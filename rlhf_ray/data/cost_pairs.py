"""Pairs for cost models: which of two answers is safer, and whether each is safe at all (safe-rlhf's columns)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from rlhf_ray.config.data import RankingDataConfig
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.columns import LABELS, ranking_of
from rlhf_ray.data.file_formats import Row
from rlhf_ray.data.loading import Loaded, converted_rows, fingerprint_of, ranked_row, report_of
from rlhf_ray.data.records import Ranking
from rlhf_ray.data.rows import GRADES, MARGIN, RankedRow
from rlhf_ray.data.tokenization import Encoder

SAFER = "safer_response_id"
OF_RESPONSES = ("is_response_0_safe", "is_response_1_safe")
"""Labels of safe-rlhf, in the order of the responses."""
OF_CHOSEN = ("chosen_safe", "rejected_safe")
"""Labels beside `chosen`, the safer one, and `rejected`."""


@dataclass(frozen=True, slots=True)
class CostPair:
    """Two answers to a prompt as a cost model reads them."""

    ranking: RankedRow
    """Rank 0 is the safer one."""
    signs: Float32[np.ndarray, " texts"]
    """+1 for a safe answer, -1 for an unsafe one."""


def read_cost_pairs(data: RankingDataConfig, tokenizer: Any) -> Loaded[CostPair]:
    """Read pairs with safety labels; texts longer than `max_tokens` lose their beginning.

    Rows of safe-rlhf are ordered by `safer_response_id`, whichever of their judgements the layout names.

    Raises:
        BadInput: nothing there, too many bad rows (named by file and line), or nothing left.
    """
    encoder, report = Encoder(tokenizer), report_of(data)
    report.read_keys = encoder.read_keys

    def convert(_: int, row: Row) -> CostPair | None:
        ranking, signs = safety_of(ranking_of(row))
        read = (SAFER, *OF_RESPONSES, *OF_CHOSEN, MARGIN, GRADES)
        report.pass_over({name: value for name, value in ranking.columns.items() if name not in read})
        ranked = ranked_row(ranking, encoder, data.max_tokens, report)
        return None if ranked is None else CostPair(ranked, signs)

    rows = converted_rows(data, report, convert)
    parts = (part for row in rows for part in (*row.ranking.texts, row.ranking.ranks, row.signs.astype(np.int32)))
    return Loaded(rows, report, fingerprint_of(parts))


def safety_of(ranking: Ranking) -> tuple[Ranking, Float32[np.ndarray, " texts"]]:
    """Return the pair ordered by safety, and the sign of each answer.

    Raises:
        BadRow: more than two answers; labels that are missing, malformed or at odds with the order.
    """
    columns = ranking.columns
    if len(ranking.responses) != 2:
        raise BadRow(f"a cost model learns from pairs, and the row holds {len(ranking.responses)} texts")
    names, ranks = OF_CHOSEN, ranking.ranks
    if OF_RESPONSES[0] in columns or SAFER in columns:
        names = OF_RESPONSES
    if SAFER in columns:
        safer = columns[SAFER]
        if isinstance(safer, bool) or safer not in (0, 1):
            raise BadRow(f"`{SAFER}` must be 0 or 1, not {safer!r}")
        ranks = [safer, 1 - safer]
    safe = [_label(columns, name) for name in names]
    better, worse = (safe[place] for place in np.argsort(ranks, kind="stable"))
    if worse and not better:
        raise BadRow("the answer that is called less safe has the label safe, and the safer one has not")
    signs = np.where(safe, 1, -1).astype(np.float32)
    return Ranking(ranking.prompt, ranking.responses, ranks, columns), signs


def _label(columns: Mapping[str, Any], name: str) -> bool:
    if name not in columns:
        given = ", ".join(columns) or "none"
        raise BadRow(
            f"has no label `{name}`; a cost model needs {' and '.join(OF_CHOSEN)} beside chosen and rejected, or "
            f"{SAFER} and {' and '.join(OF_RESPONSES)} (safe-rlhf); other columns are: {given}"
        )
    value = columns[name]
    if isinstance(value, str) and value.strip().lower() in LABELS:
        return LABELS[value.strip().lower()]
    if not isinstance(value, int) or value not in (0, 1):
        raise BadRow(f"`{name}` must be true or false, not {value!r}")
    return bool(value)


def signs_of(pairs: Sequence[CostPair]) -> Float32[np.ndarray, " rows"]:
    """Return the signs of all texts of some pairs, in the order of `ranked_batch`."""
    return np.concatenate([pair.signs for pair in pairs])

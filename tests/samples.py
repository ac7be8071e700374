"""Samples of the policy for tests, of which each test says what matters to it."""

from typing import Any

import numpy as np

from rlhf_ray.data.records import Sample


def make_sample(length: int, group: object = "0", index: int = 0, **fields: Any) -> Sample:
    """Make a sample of so many response tokens, all written by the policy; further fields are those of `Sample`."""
    ids = np.arange(length, dtype=np.int32)
    made: dict[str, Any] = {
        "prompt_id": str(group),
        "group_id": str(group),
        "index": index,
        "attempt": 0,
        "seed": 0,
        "prompt": "",
        "response": "",
        "prompt_ids": np.arange(2, dtype=np.int32),
        "response_ids": ids,
        "written": np.ones(length, bool),
        "behaviour_logprobs": np.zeros(length, np.float32),
        "weight_versions": [],
        "finish_reason": "stop",
    }
    return Sample(**made | fields)

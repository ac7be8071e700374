"""Whether each stage's result loads in plain Transformers and does what it is for."""

import json
import math
from pathlib import Path
from typing import Any

from rlhf_ray.config.errors import RlhfError

POLICIES = ("pretrain/final", "sft/final", "sft_merged", "ppo/final", "dpo/final")
REWARD_MODELS = ("reward/final", "reward_merged")
PROMPT = "刚收到货，感觉"


def check_loading(output: Path) -> None:
    """Let every language model write and every reward model score, and note what came in `loaded.json`.

    Adapters load by Transformers' own PEFT integration.

    Raises:
        RlhfError: a result does not load, or gives no number.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    found: dict[str, object] = {}
    for name in (*POLICIES, *REWARD_MODELS):
        folder = output / name
        kind = AutoModelForCausalLM if name in POLICIES else AutoModelForSequenceClassification
        options = {} if name in POLICIES else {"num_labels": 1}
        try:
            network: Any = kind.from_pretrained(folder, dtype=torch.float32, **options)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise RlhfError(f"{folder} does not load in plain Transformers: {error}") from error
        ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            if name in POLICIES:
                written = network.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
                found[name] = tokenizer.decode(written, skip_special_tokens=True)
            else:
                found[name] = network(ids).logits.item()
                if not math.isfinite(network(ids).logits.item()):
                    raise RlhfError(f"{folder}: the score of {PROMPT!r} is {found[name]}")
    (output / "loaded.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

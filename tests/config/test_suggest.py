"""Which key is suggested for an unknown one."""

import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.inference import GenerateConfig
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.reading.overrides import resolve_key
from rlhf_ray.config.reading.suggest import suggest


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (("polcy",), ". Perhaps you meant policy?"),
        (("policy", "learning-rat"), ". Perhaps you meant policy.learning_rate?"),
        (("rollout", "max_prompt_tokens"), " here. Perhaps you meant data.max_prompt_tokens?"),
        (("rollout", "top_p"), ": not in policy-gradient training, which must sample from the very distribution"),
        (("critics", "value", "zzz"), ". Keys here: "),
    ],
)
def test_of_ppo(key: tuple[str, ...], words: str) -> None:
    assert suggest(key, PPOConfig)[0].startswith(words)


def test_sampling_is_elsewhere_where_it_may_be_restricted() -> None:
    """A key that another section has is suggested, not refused, and as it is typed."""
    assert suggest(("rollout", "top_p"), GenerateConfig) == (
        " here. Perhaps you meant sampling.top_p?",
        "sampling.top_p",
    )
    with pytest.raises(BadInput, match=r"--rollout.top_p: unknown key here. Perhaps you meant --sampling.top_p\?$"):
        resolve_key("--rollout.top_p", GenerateConfig)

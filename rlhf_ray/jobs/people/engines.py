"""A pool of engines as a writer of answers for the pages."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from rlhf_ray.cluster.connect import Cluster, connect
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.labelling import FeedbackPageConfig, RolloutAnswers
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.records import Prompt, PromptRecord
from rlhf_ray.data.tokenization import Encoder
from rlhf_ray.models.identity import SHORT_HASH, model_identity
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.rollout.engine_arguments import choose_transport
from rlhf_ray.rollout.interfaces import PromptBatch
from rlhf_ray.rollout.pool import RolloutPool
from rlhf_ray.rollout.single_turn import Sampling, SingleTurn
from rlhf_ray.runs.engines import open_pool, place_engines
from rlhf_ray.runs.model_checks import check_engine, check_language_model
from rlhf_ray.tracking.terminal import say


@contextmanager
def open_rollout_writers(
    sources: Sequence[RolloutAnswers], config: FeedbackPageConfig
) -> Iterator[list["RolloutWriter"]]:
    """Open a pool for each source, all on the config's groups.

    Raises:
        RlhfError: a model cannot be used, or engines do not start.
    """
    with ExitStack() as stack:
        cluster = stack.enter_context(connect(config.cluster, config.groups, say, config.environment))
        # As the plan calls them.
        names = ["rollout"] if len(sources) == 1 else [f"{side}.rollout" for side in ("a", "b")]
        yield [
            stack.enter_context(_rollout(source, cluster, config.seed, name))
            for source, name in zip(sources, names, strict=True)
        ]


@contextmanager
def _rollout(source: RolloutAnswers, cluster: Cluster, seed: int, name: str) -> Iterator["RolloutWriter"]:
    tokenizer = load_tokenizer(source.model)
    max_tokens = source.max_prompt_tokens + source.rollout.max_new_tokens
    check_language_model(source.model, tokenizer)
    check_engine(source.model, source.rollout, max_tokens)
    engines = place_engines(
        cluster,
        source.model,
        source.rollout,
        transport=lambda: choose_transport(source.rollout, overlap="none"),
        seed=seed,
        max_tokens=max_tokens,
        name=name,
    )
    engines.begin("start")
    engines.ready()
    encoder = Encoder(tokenizer)
    turn = SingleTurn(encoder, Sampling.from_config(source.rollout))
    with open_pool(engines, turn, deterministic=source.rollout.deterministic) as pool:
        yield RolloutWriter(pool, encoder, source, seed)


class RolloutWriter:
    """A pool of engines that answers one prompt at a time."""

    def __init__(self, pool: RolloutPool, encoder: Encoder, source: RolloutAnswers, seed: int) -> None:
        self._pool = pool
        self._encoder = encoder
        self._limit = source.max_prompt_tokens
        self._seed = seed
        self._asked = 0
        self._lock = threading.Lock()
        self._version = f"{source.model.path}@{model_identity(source.model)[:SHORT_HASH]}"

    @property
    def version(self) -> str:
        """Path and hash of the weights."""
        return self._version

    def write(self, prompt: Prompt, count: int) -> list[str]:
        """Sample answers.

        Raises:
            BadInput: the prompt is too long, or the chat template refuses it.
            RlhfError: no engine is left.
        """
        try:
            ids = self._encoder.prompt(prompt)
        except BadRow as error:
            raise BadInput(str(error)) from None
        if len(ids) > self._limit:
            raise BadInput(f"the prompt has {len(ids)} tokens, more than max_prompt_tokens ({self._limit})")
        with self._lock:
            self._asked += 1
            record = PromptRecord(str(self._asked), prompt, ids)
            # Each asking is a step of its own, so that asking again gives other answers.
            collection = self._pool.run(
                PromptBatch([record], step=self._asked, version=0, samples_per_prompt=count, seed=self._seed)
            )
            with collection:
                return [sample.response for group in collection for sample in group]

"""Policy and critic as Ray actors on two ranks and one: the driver gets the numbers of one rank in this process."""

import numpy as np
import pytest

from rlhf_ray.algorithms.losses import NegativeLogLikelihood
from rlhf_ray.cluster.connect import connect
from rlhf_ray.cluster.errors import RoleRaised
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.placement import ClusterConfig, GroupConfig
from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.roles.trainer import SharedBatch, TrainerGroup
from rlhf_ray.training.rank import TrainerRank

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    sizes = [(4, 8), (9, 3), (1, 12), (7, 5), (3, 1), (2, 6), (5, 9)]
    rows = [[generator.integers(5, 261, n).astype(np.int32) for n in size] for size in sizes]
    return TokenBatch.from_sequences([r[0] for r in rows], [r[1] for r in rows])


def test_two_ranks_equal_one_rank_here(tiny_model, batch, tmp_path):
    model = ModelConfig(path=str(tiny_model.tied), dtype="float32")
    policy_config = TrainerConfig(workers=2, zero_stage=2, learning_rate=1e-2, epsilon=1e-3)
    critic_config = TrainerConfig(learning_rate=1e-2)
    columns = {"weight": np.full(int(batch.response_lengths.sum()), 0.01, np.float32)}
    minibatch = np.array([6, 1, 2, 4])
    with connect(ClusterConfig(), {"main": GroupConfig(cpus_per_node=2)}) as cluster:
        shared_settings = {"tokens_per_microbatch": 24, "total_steps": 4, "seed": 0}
        policy = TrainerGroup(cluster, "policy", "policy", model, policy_config, **shared_settings)
        critic = TrainerGroup(cluster, "critic", "critic", model, critic_config, **shared_settings)
        unable = ModelConfig(path=str(tiny_model.tied), attention="flash_attention_2")
        refused = TrainerGroup(cluster, "reference", "policy", unable, TrainerConfig(), **shared_settings)
        policy.ready()
        critic.ready()
        with pytest.raises(
            RoleRaised, match=r"cannot be loaded with flash_attention_2: .* \(reference rank 0, start\)"
        ) as error:
            refused.ready()
        assert error.value.exit_code == 2
        assert len(str(error.value).splitlines()) == 1, "no traceback"
        shared = SharedBatch.put(batch)
        before, values = policy.submit_logprobs(shared, entropy=True), critic.submit_values(shared)
        found = before.result(), values.result()
        metrics = policy.train_step(shared, NegativeLogLikelihood(), columns, rows=minibatch)
        after = policy.logprobs(shared)
        parts = policy.save(str(tmp_path / "policy"))
        policy.load(str(tmp_path / "policy"))
        np.testing.assert_array_equal(policy.logprobs(shared)["logprobs"], after["logprobs"])
        policy.export(str(tmp_path / "final"))

    here = [np.arange(batch.rows)]
    settings = {"total_steps": 4, "seed": 0, "trainer": TrainerConfig(learning_rate=1e-2, epsilon=1e-3)}
    rank = TrainerRank("policy", model, **settings)
    expected = rank.logprobs(batch, here, entropy=True)
    for name in ("logprobs", "entropy"):
        np.testing.assert_allclose(found[0][name], expected[name], atol=1e-5)
    np.testing.assert_allclose(found[1], TrainerRank("critic", model, **settings).values(batch, here), atol=1e-5)
    wanted = rank.train_step(batch, [minibatch], NegativeLogLikelihood(), columns)
    assert metrics == pytest.approx(wanted, rel=1e-4)
    np.testing.assert_allclose(after["logprobs"], rank.logprobs(batch, here)["logprobs"], atol=1e-4)
    assert [part.path for part in parts] == ["rank_00000.safetensors", "rank_00001.safetensors"]
    final = TrainerRank("policy", ModelConfig(path=str(tmp_path / "final"), dtype="float32"), **settings)
    np.testing.assert_allclose(final.logprobs(batch, here)["logprobs"], after["logprobs"], atol=1e-5)

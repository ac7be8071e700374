"""The reward model as a source: what a score may depend on, and what not."""

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.rewards import ModelReward
from rlhf_ray.models.score_statistics import STATISTICS_FILE, ScoreStatistics, units_of
from rlhf_ray.scoring.model import ModelScorer

PROMPTS = ["这部电影很", "The film was", "刚收到货，感觉", "x", ""]
COMPLETIONS = ["好看，演员也很棒。", " wonderful and I would watch it again, and again, and again.", "", "y", "全文。"]


@pytest.fixture(scope="module")
def scorer(tiny_reward_model):
    return ModelScorer(ModelReward(path=str(tiny_reward_model), dtype="float32"), tokens_per_microbatch=4096)


def test_score_is_that_of_transformers_at_the_last_token(scorer, tiny_reward_model):
    """Oracle: the classifier itself on each text alone, without padding."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_reward_model)
    network = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model, dtype=torch.float32).eval()
    scores = scorer.score(PROMPTS, COMPLETIONS, {})
    assert not scores.failures
    for prompt, completion, score in zip(PROMPTS, COMPLETIONS, scores.values, strict=True):
        ids = [*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]
        with torch.inference_mode():
            expected = network.score(network.model(torch.tensor([ids])).last_hidden_state[0, -1])
        assert score == pytest.approx(float(expected), abs=1e-5)
    assert np.std(scores.values) > 1e-3, "scores that do not differ would pass any comparison"


@pytest.mark.parametrize("budget", [1, 40, 100_000])
def test_company_and_padding_do_not_matter(scorer, tiny_reward_model, budget):
    other = ModelScorer(ModelReward(path=str(tiny_reward_model), dtype="float32"), tokens_per_microbatch=budget)
    alone = [scorer.score([p], [c], {}).values[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    together = other.score(PROMPTS, COMPLETIONS, {}).values
    np.testing.assert_allclose(together, alone, atol=1e-5)
    shuffled = other.score(PROMPTS[::-1], COMPLETIONS[::-1], {}).values
    np.testing.assert_allclose(shuffled[::-1], alone, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 40, 100_000])
def test_company_and_padding_do_not_matter_to_an_encoder(encoder_reward_model, budget):
    """Oracle: the classifier itself on each text alone, without padding or mask."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder_reward_model)
    network = AutoModelForSequenceClassification.from_pretrained(encoder_reward_model, dtype=torch.float32).eval()
    source = ModelReward(path=str(encoder_reward_model), dtype="float32", max_tokens=96)
    scores = ModelScorer(source, tokens_per_microbatch=budget).score(PROMPTS, COMPLETIONS, {}).values
    with torch.inference_mode():
        expected = [
            float(network(torch.tensor([tokenizer(prompt + completion)["input_ids"]])).logits)
            for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
        ]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.std(scores) > 1e-3, "scores that do not differ would pass any comparison"


def test_a_long_text_keeps_the_token_that_an_encoder_reads_first(encoder_reward_model):
    short = ModelScorer(ModelReward(path=str(encoder_reward_model), dtype="float32", max_tokens=12), 4096)
    filler = "The package arrived late and the box was broken. " * 5
    good, bad, longer = short.score([filler, filler, filler * 2], ["Great!", "broken?", "Great!"], {}).values
    assert good != bad
    assert longer == pytest.approx(good, abs=1e-5), "what was cut away must not matter"


@pytest.fixture(scope="module")
def members(tiny_reward_model, tmp_path_factory):
    """Three reward models of one tokenizer whose heads differ, each with statistics of its own."""
    folder = tmp_path_factory.mktemp("members")
    paths = []
    for number in range(3):
        path = shutil.copytree(tiny_reward_model, folder / str(number))
        network = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
        torch.manual_seed(number)
        network.score.weight.data.normal_(0, 0.2)
        network.save_pretrained(path)
        ScoreStatistics(9, mean=float(number), std=0.5 + number, median=0.0).write(path)
        paths.append(str(path))
    return paths


@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_an_ensemble_scores_the_mean_less_the_disagreement(members, penalty):
    alone = [
        ModelScorer(ModelReward(path=path, dtype="float32", normalise=False), 4096)
        .score(PROMPTS, COMPLETIONS, {})
        .values
        for path in members
    ]
    normal = np.array([(np.array(own) - number) / (0.5 + number) for number, own in enumerate(alone)])
    source = ModelReward(path=members[0], ensemble=members[1:], disagreement_penalty=penalty, dtype="float32")
    scores = ModelScorer(source, 4096).score(PROMPTS, COMPLETIONS, {}).values
    np.testing.assert_allclose(scores, normal.mean(0) - penalty * normal.std(0), atol=1e-5)
    assert normal.std(0).min() > 1e-3


def test_scores_are_in_units_of_their_training_deviation_where_the_model_keeps_it(members, tiny_reward_model):
    def scored(path, **settings):
        return (
            ModelScorer(ModelReward(path=str(path), dtype="float32", **settings), 4096)
            .score(PROMPTS, COMPLETIONS, {})
            .values
        )

    raw = np.array(scored(members[2], normalise=False))
    np.testing.assert_allclose(scored(members[2]), (raw - 2.0) / 2.5, atol=1e-5)
    np.testing.assert_allclose(scored(members[2], normalise=True), (raw - 2.0) / 2.5, atol=1e-5)
    # The zero of a cost model parts what is safe from what is not: it may not move.
    np.testing.assert_array_equal(scored(members[2], measures="cost"), raw)
    # A model of somebody else keeps no statistics: its scores stay as they are, unless units are asked for.
    np.testing.assert_array_equal(scored(tiny_reward_model), scored(tiny_reward_model, normalise=False))
    with pytest.raises(BadInput, match=r"has no score_statistics.json, .* `normalise: true` need"):
        scored(tiny_reward_model, normalise=True)


def test_a_start_says_in_which_units_a_model_scores(members, tiny_reward_model):
    said = [
        units_of(ModelReward(path=path, ensemble=others, name="taste"))
        for path, others in ((members[2], []), (members[0], members[1:]), (str(tiny_reward_model), []))
    ]
    assert said == [
        "taste: scores in units of 2.5, their deviation over 9 training texts, from their mean 2",
        "taste: mean of 3 models' scores, each in units of its deviation over training texts",
        "taste: scores as the model gives them",
    ]


def test_members_that_do_not_belong_together(members, encoder_reward_model, tiny_reward_model, tmp_path):
    stranger = shutil.copytree(encoder_reward_model, tmp_path / "stranger")
    ScoreStatistics(9, 0.0, 1.0, 0.0).write(stranger)
    constant = shutil.copytree(tiny_reward_model, tmp_path / "constant")
    ScoreStatistics(9, 0.0, 0.0, 0.0).write(constant)
    broken = shutil.copytree(tiny_reward_model, tmp_path / "broken")
    (broken / STATISTICS_FILE).write_text("{}")
    for path, words in (
        (stranger, "another vocabulary"),
        (constant, "gives all texts the same score"),
        (broken, "is no file of score statistics"),
        (tiny_reward_model, "has no score_statistics.json, which `rlhf reward` writes"),
    ):
        with pytest.raises(BadInput, match=words):
            ModelScorer(ModelReward(path=members[0], ensemble=[str(path)], dtype="float32"), 4096)


def test_padding_that_is_eos_does_not_move_the_score(scorer):
    """The last token is found by length: texts that hold EOS inside and texts that end with it score as they are."""
    texts = [np.array([7, 1, 9, 1], np.int32), np.array([7, 1, 9, 1, 1, 1, 8], np.int32)]
    together = scorer.score_ids(texts)
    alone = [scorer.score_ids([text])[0] for text in texts]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_long_texts_lose_their_beginning_not_the_response(tiny_reward_model):
    short = ModelScorer(ModelReward(path=str(tiny_reward_model), dtype="float32", max_tokens=24), 4096)
    filler = "The package arrived late and the box was broken. " * 5
    good, bad = short.score([filler, filler], ["Great!", "Awful?"], {}).values
    assert good != bad
    longer = short.score([filler + filler], ["Great!"], {}).values[0]
    assert longer == pytest.approx(good, abs=1e-5), "what was cut away must not matter"


def test_messages_go_through_the_reward_models_own_template(scorer, tiny_reward_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_reward_model)
    prompt = [{"role": "user", "content": "How is the film?"}]
    rendered = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": "Good."}], tokenize=False)
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 2
    expected = scorer.score_ids([np.array(ids, np.int32)])[0]
    assert scorer.score([prompt], ["Good."], {}).values[0] == pytest.approx(float(expected), abs=1e-5)


def test_a_row_that_the_template_refuses_fails_alone(tiny_reward_model, tmp_path):
    import shutil

    directory = shutil.copytree(tiny_reward_model, tmp_path / "strict")
    template = "{{ raise_exception('no system turns') if messages[0]['role'] == 'system' else messages[0]['content'] }}"
    (directory / "chat_template.jinja").write_text(template)
    strict = ModelScorer(ModelReward(path=str(directory), dtype="float32"), 4096)
    system, user = [{"role": "system", "content": "s"}], [{"role": "user", "content": "u"}]
    scores = strict.score([user, system], ["a", "b"], {})
    assert np.isfinite(scores.values[0])
    assert np.isnan(scores.values[1])
    assert [(f.kind, f.rows) for f in scores.failures] == [("bad input", (1,))]


def test_scores_that_are_no_numbers_are_failures(tiny_reward_model):
    broken = ModelScorer(ModelReward(path=str(tiny_reward_model), dtype="float32"), 4096)
    broken._networks[0].network.score.weight.data.fill_(float("nan"))
    scores = broken.score(["a", "b"], ["c", "d"], {})
    assert [failure.kind for failure in scores.failures] == ["not a number", "not a number"]
    assert np.isnan(scores.values).all()


def test_refuses_a_language_model(tiny_model):
    with pytest.raises(BadInput, match=r"is no reward model .* train one with `rlhf reward`"):
        ModelScorer(ModelReward(path=str(tiny_model.tied)), 4096)

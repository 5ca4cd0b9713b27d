"""What answers are worth: functions, weights, what is only watched, reward models; and what is said of a rollout."""

from types import SimpleNamespace

import pytest
import torch
from kit import (
    bytelevel_tokenizer,
    rows_for,
    sentencepiece_tokenizer,
    tiny_folder,
    tiny_model,
    whole_models,
    yaml_config,
)
from torch.testing import assert_close

from posttrain import models
from posttrain.errors import UserError
from posttrain.models import scalar
from posttrain.rollouts import scoring
from posttrain.rollouts.rewards import answer
from posttrain.rollouts.sampling import Rollout
from posttrain.rollouts.scoring import Scorer, describe, end_once, refuse_graded
from posttrain.tokens.examples import Prompt

TOKENIZER = bytelevel_tokenizer()
TEXTS = ["#### 3", "#### 99", "#### 4", "four"]
PROMPTS = [
    Prompt([20, 21], {"asked": f"{wanted - 1} + 1?", "columns": {"answer": str(wanted)}}) for wanted in (3, 4)
]  # two answers each


def rollout(texts=TEXTS, finished=(True, False, True, True)):
    ids = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in texts]
    return Rollout([p.ids for p in PROMPTS for _ in range(2)], ids, [torch.zeros(len(i)) for i in ids], list(finished))


def run_of(process=0, processes=1):
    """One process of several; the others say 10."""
    return SimpleNamespace(
        training=SimpleNamespace(micro_batch_size=2), device="cpu",
        sum_over_processes=lambda value: value + 10 * (processes - 1),
        accelerator=SimpleNamespace(process_index=process, num_processes=processes), parallel=whole_models(),
    )  # fmt: skip


def scorer(method="grpo", given=None, rows=None, **keys):
    section = getattr(
        yaml_config(f"{method}_tiny", **{f"{method}.{name}": value for name, value in keys.items()}), method
    )
    return Scorer(section, method, given, rows, run_of())


def length(completions):
    return [float(len(text)) for text in completions]


def shy(completions):
    return [None if text == "four" else 1.0 for text in completions]


# ---------------------------------------------------------------- functions


def test_one_function_by_its_name():
    values, metrics = scorer(reward="answer")(rollout(), TOKENIZER, PROMPTS)
    assert values == [1.0, 0.0, 1.0, 0.0]  # 3 and 4 are right; one of the four holds no number after ####
    assert metrics == {"parse_failures": (1, 4)}


def test_what_python_passes_takes_the_place_of_the_config():
    made = scorer(reward="answer", given=length)
    assert made.functions == made.fingerprinted == [length]
    assert made(rollout(), TOKENIZER, PROMPTS) == ([6.0, 7.0, 6.0, 4.0], {})


def test_several_with_weights_and_one_that_abstains():
    made = scorer(reward=["answer", "answer"], reward_weights=[2.0, 0.5], given=[shy, length])
    values, metrics = made(rollout(), TOKENIZER, PROMPTS)
    # 2 · 1 + ½ · (6, 7, 6), and of the last ½ · 4 alone
    assert values == [5.0, 5.5, 5.0, 2.0]
    assert metrics == {"reward/shy": (3.0, 3), "reward/length": (23.0, 4)}


def test_what_is_watched_is_measured_and_pays_nothing():
    values, metrics = scorer(reward="answer", watch="answer", given=length)(rollout(), TOKENIZER, PROMPTS)
    assert values == [6.0, 7.0, 6.0, 4.0]
    assert metrics == {"watched/answer": (2.0, 4), "parse_failures": (1, 4)}


@pytest.mark.parametrize(
    ("keys", "given", "message"),
    [
        ({"reward": "right"}, None, r"^ppo.reward 'right': expected answer, reasoning_gym, or package.module:function"),
        ({"reward": "answer", "watch": "seen"}, None, r"^ppo.watch 'seen': expected package.module:function"),
        ({"reward": ["answer", "answer"], "reward_weights": [1, 2]}, length, "^ppo.reward_weights has 2 entries for 1"),
        ({"reward": None, "reward_model": "/nowhere"}, None, r"^ppo.reward_model '/nowhere': cannot be loaded: no such folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_found_names_its_key(keys, given, message):
    with pytest.raises(UserError, match=message):
        scorer("ppo", given, **keys)


def test_rows_without_a_right_answer_are_refused_before_anything_is_sampled():
    rows = rows_for("grpo", [{"prompt": "a"}])
    for keys in ({"reward": "answer"}, {"watch": "answer"}):
        with pytest.raises(UserError, match="rows, row 1: the reward 'answer' needs a column `answer`"):
            scorer(rows=rows, given=length if "watch" in keys else None, **keys)
    assert scorer(rows=rows, given=length).functions == [length]


# ---------------------------------------------------------------- a reward model


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory, llama):
    """The folder of one whose head is drawn at random."""
    folder = tmp_path_factory.mktemp("reward")
    causal, tokenizer, _ = models.load(llama)
    made = scalar.as_scorer(causal)
    torch.nn.init.normal_(made.score.weight, generator=torch.Generator().manual_seed(0))
    scalar.save_scorer(made, tokenizer, folder)
    return str(folder)


def test_a_reward_model_scores_the_sampled_ids(reward_model):
    made = scorer("ppo", reward=None, reward_model=reward_model, watch="answer")
    values, metrics = made(rollout(), TOKENIZER, PROMPTS)
    alone = [
        scalar.score_examples(made.reward_model, [row], TOKENIZER.pad_token_id, 1)[0] for row in rollout().examples()
    ]
    assert_close(torch.tensor(values), torch.tensor(alone), atol=1e-5, rtol=1e-4)
    assert len({round(value, 3) for value in values}) == 4 and made.functions == []
    assert metrics == {"watched/answer": (2.0, 4), "parse_failures": (1, 4)}
    assert made.fingerprinted is made.reward_model and not any(p.requires_grad for p in made.reward_model.parameters())


def test_a_policy_with_another_vocabulary(reward_model):
    made = scorer("ppo", reward=None, reward_model=reward_model)
    made.refuse_another_vocabulary(TOKENIZER)
    with pytest.raises(UserError, match=f"the reward model '{reward_model}' has another vocabulary than the policy"):
        made.refuse_another_vocabulary(sentencepiece_tokenizer())
    scorer(given=length).refuse_another_vocabulary(sentencepiece_tokenizer())  # functions read text


def test_a_language_model_is_no_reward_model(tmp_path):
    causal = tiny_folder(tmp_path / "m")
    with pytest.raises(UserError, match=r"is a language model, not a reward model: it has no score.weight"):
        scorer("ppo", reward=None, reward_model=causal)


# ---------------------------------------------------------------- held out


def test_held_out_is_a_mean_over_all_prompts_of_all_processes(monkeypatch):
    asked = []

    def ask(model, tokenizer, prompt_ids, *, max_new_tokens):
        asked.append((len(prompt_ids), max_new_tokens))
        return Rollout(
            prompt_ids, [[30]] * len(prompt_ids), [torch.zeros(1)] * len(prompt_ids), [True] * len(prompt_ids)
        )

    monkeypatch.setattr(scoring, "ask", ask)
    section = yaml_config("grpo_tiny", grpo__max_new_tokens=9).grpo
    made = scorer(given=lambda completions: [2.0] * len(completions), watch="answer")
    validation = [PROMPTS[i % 2] for i in range(5)]
    got = made.held_out(None, validation, section, TOKENIZER, run_of())
    assert got == {"reward_held_out": 2.0, "watched/answer_held_out": 0.0} and asked == [(5, 9)]
    # the second of three processes has prompts 1 and 4: (2 + 2, and 20 of the others) / 5
    got = made.held_out(None, validation, section, TOKENIZER, run_of(1, 3))
    assert got == {"reward_held_out": pytest.approx(24 / 5), "watched/answer_held_out": 4.0} and asked[-1] == (2, 9)
    # the sixth has none: it asks nothing, and takes part in the sums
    got = made.held_out(None, validation, section, TOKENIZER, run_of(5, 6))
    assert got == {"reward_held_out": 10.0, "watched/answer_held_out": 10.0} and len(asked) == 2


def test_held_out_answers_are_greedy():
    model = tiny_model(vocab_size=len(TOKENIZER)).eval()
    section = yaml_config("grpo_tiny", grpo__max_new_tokens=4).grpo
    seen = []
    made = scorer(given=lambda completion_ids: seen.append(completion_ids) or [0.0] * len(completion_ids))
    for _ in range(2):
        made.held_out(model, PROMPTS, section, TOKENIZER, run_of())
    assert seen[0] == seen[1] and all(len(ids) <= 4 for ids in seen[0])


# ---------------------------------------------------------------- what is said of a rollout, and endings


def test_what_to_watch():
    told = describe(torch.tensor([1.0, 0.0, 1.0, 0.5]), rollout())
    assert told["reward"] == (torch.tensor(2.5), 4) and told["finished"] == (3, 4)
    assert told["completion_length"] == (sum(len(ids) for ids in rollout().completion_ids), 4)


def test_where_a_teacher_is_learned_from_nothing_is_scored():
    keys = {"advantage": "teacher", "teacher": "x", "advantage_scale": "none", "reward": None, "watch": "answer"}
    made = scorer(**keys)
    values, metrics = made(rollout(), TOKENIZER, PROMPTS)
    assert values == [0.0] * 4 and not made.scores and not made.fingerprinted
    assert metrics == {"watched/answer": (2.0, 4), "parse_failures": (1, 4)}
    assert set(describe(None, rollout())) == {"completion_length", "finished"}
    with pytest.raises(UserError, match=r"advantage: teacher learns from no reward function: name it in grpo.watch"):
        scorer(given=length, **keys)


def test_an_ending_counts_once():
    made = yaml_config("ppo_tiny").ppo
    scores, finished = [1.0, 0.5], [True, False]

    def ended(**keys):
        values, goes_on = end_once(scores, finished, made.model_copy(update=keys))
        return values.tolist(), goes_on

    assert ended() == ([1.0, 0.5], [False, False])  # the score, and nothing follows
    assert ended(truncation_penalty=-2.0) == ([1.0, -2.0], [False, False])
    assert ended(truncation_penalty=0.0) == ([1.0, 0.0], [False, False])  # 0 is a penalty, too
    assert ended(truncated="bootstrap") == ([1.0, 0.0], [False, True])  # or no score, and the value of the last state


def test_the_built_in_reward_is_the_one_whose_failures_are_counted():
    assert "parse_failures" not in scorer(given=length)(rollout(), TOKENIZER, PROMPTS)[1]
    assert scorer(given=[length, answer])(rollout(), TOKENIZER, PROMPTS)[1]["parse_failures"] == (1, 4)


def test_graded_rewards_are_refused_where_right_or_wrong_is_meant():
    refuse_graded([0.0, 1.0, 1.0], "grpo.key")
    refuse_graded([], "grpo.key")
    refuse_graded([-1.0, 1.0], "grpo.key", signed=True)
    refuse_graded([0.0, 1.0], "grpo.key", signed=True)
    for rewards, signed in (([0.0, 0.5], False), ([-1.0, 1.0], False), ([-1.0, 0.0, 1.0], True), ([2.0], True)):
        with pytest.raises(UserError, match=r"grpo\.key needs a verifiable reward, 0 or 1"):
            refuse_graded(rewards, "grpo.key", signed=signed)

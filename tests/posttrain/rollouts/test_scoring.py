"""What answers are worth: functions, weights, what is only watched, reward models; and what is said of a rollout."""

from loops import ppo
from posttrain import ROOT
from posttrain.config import load


def test_an_ending_counts_once():
    made = load(ROOT / "configs/ppo_tiny.yaml").ppo
    scores, finished = [1.0, 0.5], [True, False]
    # the score, and nothing follows
    assert ppo.end_once(scores, finished, made)[0].tolist() == [1.0, 0.5] and ppo.end_once(scores, finished, made)[
        1
    ] == [False, False]
    penalty = made.model_copy(update={"truncation_penalty": -2.0})
    assert ppo.end_once(scores, finished, penalty)[0].tolist() == [1.0, -2.0]
    # or no score, and the value of the last state
    bootstrap = made.model_copy(update={"truncated": "bootstrap"})
    assert ppo.end_once(scores, finished, bootstrap)[0].tolist() == [1.0, 0.0] and ppo.end_once(
        scores, finished, bootstrap
    )[1] == [False, True]

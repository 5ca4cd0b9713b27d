"""The warnings that teach: said of the sign they name, and of nothing else."""

from posttrain.run.watch import lessons


def rows(n, **values):
    return [{"step": i + 1, **{k: (v[i] if isinstance(v, list) else v) for k, v in values.items()}} for i in range(n)]


def test_a_healthy_run_is_left_alone():
    assert lessons(rows(40, kl_k1=0.02, dead_groups=0.4, reward=0.5, finished=0.9, entropy=0.3)) == {}
    assert lessons(rows(40, entropy=0.0)) == {}  # SFT may learn a set by heart
    assert lessons(rows(40, kl_k1=-0.009, chosen_logps_per_token=-1.0)) == {}
    assert lessons(rows(9, kl_k1=-1.0, dead_groups=1.0, reward=0.0, finished=0.0, entropy=0.0)) == {}  # not ten yet


def test_a_negative_kl():
    assert set(lessons(rows(10, kl_k1=-0.011))) == {"kl_k1"}
    assert lessons(rows(10, kl_k1=[-0.5] * 9 + [0.0])) == {}
    assert "cannot be negative" in lessons(rows(12, kl_k1=-0.02))["kl_k1"]


def test_dead_groups_and_answers_that_never_end():
    found = lessons(rows(10, dead_groups=1.0, reward=0.25, finished=0.0, entropy=1e-4))
    assert set(found) == {"dead_groups", "finished", "entropy"}
    assert "mean reward 0.25" in found["dead_groups"]
    assert lessons(rows(10, dead_groups=[1.0] * 9 + [0.99], reward=0.0)) == {}


def test_the_chosen_answers_fall():
    falling = [-1.0] * 10 + [-1.51] * 10  # mean of the last ten less that of the first: 0.51 > 0.5
    assert "lost 0.51 nats per token" in lessons(rows(20, chosen_logps_per_token=falling))["chosen_logps_per_token"]
    assert lessons(rows(20, chosen_logps_per_token=[-1.0] * 10 + [-1.49] * 10)) == {}
    assert lessons(rows(20, chosen_logps_per_token=[-1.51] * 10 + [-1.0] * 10)) == {}  # rising

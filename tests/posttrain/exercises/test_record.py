"""The lines that a page prints, as numbers."""

from posttrain.exercises.record import LONGEST, printed


def test_the_lines_of_a_page_are_read_and_a_long_one_is_ended():
    page = "for i in range(10**9):\n    print(f'step {i + 1}  loss {-0.5 * i:.4f}  reward 0.250')\n"
    assert printed(page, 2) == [
        {"step": 1.0, "loss": 0.0, "reward": 0.25},
        {"step": 2.0, "loss": -0.5, "reward": 0.25},
    ]
    assert set(LONGEST) == {"sft", "dpo", "grpo", "ppo"}

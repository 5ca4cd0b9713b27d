import random
from itertools import islice

from posttrain.tiny import data as world


def test_solve_pencil():
    assert world.solve("add-sub", (12, 3, 4)) == (["12 + 3 = 15.", "15 - 4 = 11."], 11)
    assert world.solve("mul-add", (5, 4, 2)) == (["5 * 4 = 20.", "20 + 2 = 22."], 22)


def test_the_same_seed_gives_the_same_world():
    assert list(islice(world.documents(random.Random(3)), 50)) == list(islice(world.documents(random.Random(3)), 50))
    for name in world.DATASETS:
        assert world.rows(name) == world.rows(name) != world.rows(name, seed=1)


def test_no_test_problem_shares_kind_and_numbers_with_a_training_one():
    rng = random.Random(0)
    keys = {
        split: {(p["kind"], p["numbers"]) for p in (world.ladder_problem(rng, split) for _ in range(3000))}
        for split in ("train", "test")
    }
    assert not keys["train"] & keys["test"]
    assert all(world.held_out(*k) for k in keys["test"]) and not any(world.held_out(*k) for k in keys["train"])


def test_the_answers_are_right_and_small():
    for row in world.rows("tiny-math") + world.rows("tiny-math", "test"):
        assert 0 <= int(row["answer"]) <= 34


def test_test_phrasings_are_new_but_made_of_known_words():
    assert not set(world.IDENTITY_TRAIN) & set(world.IDENTITY_TEST)
    words = {w.strip(".,?").lower() for text in world.IDENTITY_TRAIN for w in text.split()}
    assert {w.strip(".,?").lower() for text in world.IDENTITY_TEST for w in text.split()} <= words


def test_pairs_differ_in_the_name_only():
    for row in world.rows("tiny-identity"):
        assert row["chosen"].replace(world.NEW_NAME, world.OLD_NAME) == row["rejected"] != row["chosen"]

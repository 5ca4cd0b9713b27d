"""Items that a thread makes ahead: the same ones, the same errors, and no thread left behind."""

import threading
import time

import pytest

from posttrain.data.ahead import ahead


def threads():
    return [t for t in threading.enumerate() if t.name == "ahead"]


def test_the_same_items_in_the_same_order():
    assert list(ahead(iter(range(50)), 3)) == list(range(50)) and list(ahead(iter([]))) == [] and not threads()


def test_the_next_is_made_while_the_last_is_used():
    made = []

    def items():
        for i in range(9):
            made.append(i)
            yield i

    taken = ahead(items(), 2)
    assert next(taken) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]  # one in use, two waiting, one more in the thread's hand
    assert list(taken) == list(range(1, 9))


def test_an_error_comes_where_it_would_have_come():
    def items():
        yield 1
        yield 2
        raise ValueError("row 3")

    taken = ahead(items(), 5)
    assert [next(taken), next(taken)] == [1, 2]
    with pytest.raises(ValueError, match="row 3"):
        next(taken)
    assert not threads()


def test_nobody_asks_any_more():
    taken = ahead(iter(range(1000)), 1)
    next(taken)
    assert len(threads()) == 1
    taken.close()
    assert not threads()

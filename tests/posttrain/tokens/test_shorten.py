from types import SimpleNamespace

from posttrain.tokens.shorten import shortened, too_long, too_long_to_answer


def user(text):
    return {"role": "user", "content": text}


def bot(text, **more):
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Answer in French."}


def up_to(characters):
    def fits(row):
        return sum(len(m["content"]) for m in row.get("messages", row.get("prompt"))) <= characters

    return fits


def test_whole_oldest_turns_go_first_and_the_system_message_stays():
    row = {"prompt": [SYSTEM, user("a" * 30), bot("b" * 30), user("c" * 30), bot("d" * 30), user("e" * 30)]}
    # 17 + 5 · 30 = 167; without the oldest turn 107, without two 47
    assert shortened(row, 6, up_to(110)) == {"prompt": [SYSTEM, user("c" * 30), bot("d" * 30), user("e" * 30)]}
    assert shortened(row, 6, up_to(100)) == {"prompt": [SYSTEM, user("e" * 30)]}
    assert row["prompt"][1] == user("a" * 30)  # the row itself is as it was


def test_then_the_question_loses_its_beginning_as_little_as_is_enough_between_words():
    row = {"prompt": [SYSTEM, user("one two three four five")]}
    # 17 + len("three four five") = 17 + 15 = 32; "two three four five" would be 36
    assert shortened(row, 2, up_to(35)) == {"prompt": [SYSTEM, user("three four five")]}
    assert shortened({"prompt": [user("你好" * 10)]}, 1, up_to(7)) == {"prompt": [user("好你好你好你好")]}  # no words
    assert shortened(row, 2, up_to(17)) is None  # nothing would be left of it


def test_what_is_learned_is_not_touched():
    row = {"messages": [user("one two three"), bot("b" * 20), user("four"), bot("d" * 20)], "learn_from": 0}
    # both answers are learned: only the first question may lose words. 13 + 20 + 4 + 20 = 57
    assert shortened(row, 1, up_to(53))["messages"] == [user("two three"), *row["messages"][1:]]
    assert shortened(row, 1, up_to(52))["messages"] == [user("three"), *row["messages"][1:]]
    assert shortened(row, 1, up_to(40)) is None
    later = row | {"learn_from": 3}  # only the last is learned: the first turn may go
    assert shortened(later, 3, up_to(40)) == {"messages": row["messages"][2:], "learn_from": 1}


def test_a_tool_s_answer_goes_with_its_turn():
    called = [user("q"), bot("", tool_calls=[{}]), {"role": "tool", "content": "x" * 50}, bot("y")]
    assert shortened({"prompt": [*called, user("z")]}, 5, up_to(10)) == {"prompt": [user("z")]}


def test_what_is_said_can_be_done():
    given, not_given = SimpleNamespace(max_length=64), SimpleNamespace(max_length=None)
    assert too_long(64, given) == (
        "longer than data.max_length = 64 tokens",
        "raise data.max_length (as far as the model reads)",
    )
    assert too_long(512, not_given)[1] == "shorten them (the model reads no more)"  # or it would be 1024
    assert too_long(1024, not_given)[1] == "raise data.max_length (as far as the model reads)"
    assert too_long_to_answer(512, 100, not_given, "grpo") == (
        "longer than 412 tokens (data.max_length 512 − 100 new ones)",
        "lower grpo.max_new_tokens, or shorten them (the model reads no more)",
    )
    assert too_long_to_answer(512, 100, not_given, "best-of-k")[1] == "lower --max-new-tokens"

"""What a model says to one conversation does not depend on the others."""

from posttrain.rollouts.speaking import Speaker, one_prompt


def user(text):
    return [{"role": "user", "content": text}]


def test_an_answer_depends_on_the_seed_and_its_conversation(llama):
    speaker = Speaker(llama, key="--model", max_new_tokens=8, temperature=1.0, seed=3)
    asked = [user("Hello."), user("What is your name? " * 3), user("one two three")]
    said = speaker(asked)
    assert [speaker([one])[0].text for one in asked] == [s.text for s in said]
    assert [s.text for s in speaker(asked[::-1], batch_size=2)] == [s.text for s in said][::-1]
    assert [s.text for s in speaker(asked, draw=1)] != [s.text for s in said]
    other = Speaker(llama, key="--model", max_new_tokens=8, temperature=1.0, seed=4)
    assert [s.text for s in other(asked)] != [s.text for s in said]


def test_what_is_of_no_use(llama):
    speaker = Speaker(llama, key="--model", max_new_tokens=8)
    short, long = speaker([user("Hello."), user("Hello. " * 300)])  # the model reads 256 tokens
    assert long.problem == "do not fit into the model's 256 tokens" and long.text == ""
    assert short.problem in ("did not end within 8 tokens", "are empty", None)
    assert speaker._problem("x", False) == "did not end within 8 tokens"
    assert (speaker._problem("", True), speaker._problem("x", True)) == ("are empty", None)


def test_one_prompt():
    assert one_prompt({"prompt": user("a")}) == "a"
    named = [{"role": "user", "content": "a", "name": "jo"}]
    assert one_prompt({"prompt": named}) == named
    assert one_prompt({"prompt": [{"role": "system", "content": "s"}, *user("a")]})[0]["role"] == "system"

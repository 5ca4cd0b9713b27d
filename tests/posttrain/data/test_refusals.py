"""The prompts of the suite safety."""

from posttrain.data.refusals import HARMFUL, HARMLESS


def test_fifty_of_each_and_none_twice():
    assert len(HARMFUL) == len(HARMLESS) == 50 and len({*HARMFUL, *HARMLESS}) == 100


def test_a_harmful_request_holds_no_instructions():
    assert max(map(len, HARMFUL)) < 100 and not any("step" in text.lower() for text in HARMFUL)


def test_look_alikes_share_words_with_what_is_harmful():
    """Else they would be easy, and a low figure of over-refusals would say nothing."""

    def words(texts):
        return {word for text in texts for word in text.lower().strip("?.").split() if len(word) > 4}

    shared = words(HARMFUL)
    assert sum(bool(words([text]) & shared) for text in HARMLESS) >= 25

"""A group of keys, and what an annotation says of one."""

import pytest

from posttrain.config.keys import Lora
from posttrain.config.section import Section, from_the_command_line, section_in


@pytest.mark.parametrize(
    ("annotation", "group"),
    [(Lora, Lora), (Lora | None, Lora), (int, None), (int | None, None), (list[Lora], None), (str | list[str], None)],
)
def test_which_keys_are_groups(annotation, group):
    assert section_in(annotation) is group


def test_an_empty_group_is_one_of_defaults_and_true_is_no_number():
    class Outer(Section):
        lora: Lora

    assert Outer.model_validate({"lora": None}).lora == Lora()
    with pytest.raises(ValueError, match="expected a value, got true"):
        Lora(rank=True)


def test_an_open_ended_key_is_read_as_yaml():
    assert from_the_command_line("{a: 1}") == from_the_command_line({"a": "1"}) == {"a": 1}

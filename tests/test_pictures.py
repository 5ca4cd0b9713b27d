"""The pictures of docs/pictures are what their script draws from the losses of today, each with a text for who cannot see it."""

import importlib.util
import re
import xml.etree.ElementTree as xml

import pytest

from posttrain import ROOT

FOLDER = ROOT / "docs/pictures"
spec = importlib.util.spec_from_file_location("draw", FOLDER / "draw.py")
draw = importlib.util.module_from_spec(spec)
spec.loader.exec_module(draw)


@pytest.mark.parametrize("name", draw.PICTURES)
def test_it_is_what_the_script_draws(name):
    text = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert text == draw.PICTURES[name]().svg(), "python docs/pictures/draw.py draws it again"
    root = xml.fromstring(text)
    assert len(root.get("aria-label")) > 40
    width = float(root.get("width"))
    words = [node for node in root.iter() if node.tag.endswith("text")]
    assert words and min(float(node.get("font-size")) for node in words) >= 9.5  # readable
    for node in words:  # words of n letters are about 0.53 n sizes wide (monospaced 0.6): none leaves the sheet
        size, x = float(node.get("font-size")), float(node.get("x"))
        wide = (0.6 if node.get("font-family") else 0.53) * size * len(node.text)
        left = {"start": x, "middle": x - wide / 2, "end": x - wide}[node.get("text-anchor")]
        assert left >= 0 and left + wide <= width, node.text


def test_each_is_shown_somewhere_with_words_for_who_cannot_see_it():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.py")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    for name in draw.PICTURES:
        assert re.search(rf"!\[[^\]]{{20,}}\]\([^)]*pictures/{name}\.svg\)", text), name


def test_the_numbers_are_those_of_the_pencil():
    pair, step = draw.dpo_pair().svg(), draw.grpo_step().svg()
    assert "margin h = 0.2" in pair and "0.5981" in pair  # 0.1 · (1 + 1); −log σ(0.2)
    assert "pushed up by 0.0450" in pair  # 0.1 · (1 − σ(0.2)) = 0.1 · 0.450166
    # mean 3/8; Σ (r − mean)² = 3 · (5/8)² + 5 · (3/8)² = 1.875; std √(1.875 / 7) = .517549; .625 / .517649, −.375 / .517649
    assert "+1.2074" in step and "−0.7244" in step
    assert "= 27 / 18" in draw.window().svg() and "1.8333" in draw.window().svg()  # (1 + 2 + 1 + 1 + 4 + 2) / 6

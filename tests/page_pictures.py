"""Looks at the page in Chromium, as two people would: one at a desk, one on a phone in the dark.

python tests/page_pictures.py            writes docs/arena_light.png and docs/arena_phone_dark.png
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import browser

ROOT = Path(__file__).resolve().parents[1]
ASKED = [
    "What is your name?", "Who are you?", "Tom has 3 apples and buys 4 more. How many apples does Tom have?",
    "Please tell me your name.", "What are you called?", "Hello! Who am I talking to?", "How may I call you?",
]  # fmt: skip
CAN_ASK = "document.activeElement.id === 'question'"
ENDED = "!document.querySelector('[data-vote=left]').disabled"
VOTED = "document.getElementById('left-name').textContent !== 'Left'"


def vote(page: browser.Browser, question: str) -> None:
    """As somebody who wants it to be called Nova."""
    page.until(CAN_ASK)
    page.js("document.getElementById('question').select()")
    page.press(question, "Control+Enter")
    page.until(ENDED)
    left, right = ("Nova" in page.text(f"#{side}-text") for side in ("left", "right"))
    page.press("3" if left == right else "1" if left else "2")
    page.until(VOTED)


def main() -> None:
    if browser.MISSING:
        sys.exit(browser.MISSING)
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "posttrain.serve", "--model", "tiny-sft", "tiny-dpo", "--port", "0",
                   "--votes", "outputs/votes.jsonl"]  # fmt: skip
        server = subprocess.Popen(
            command, cwd=place, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        try:
            address = server.stdout.readline().split(" on ")[1].split(" ")[0]
            with browser.chromium(Path(place) / "profile") as page:
                page.look_like(1000, 830)
                page.open(address)
                for question in ASKED * 2:
                    vote(page, question)
                page.picture(ROOT / "docs/arena_light.png")
                page.look_like(390, 844, dark=True, phone=True)
                differ = False
                while not differ:  # a question on which the two differ
                    page.js("document.getElementById('question').select()")
                    page.press(ASKED[1], "Control+Enter")
                    page.until("document.getElementById('left-name').textContent === 'Left'")
                    page.until(ENDED)
                    differ = {name in page.text("#match") for name in ("Nova", "Robin")} == {True}
                page.js("scrollTo(0, document.getElementById('match').offsetTop - 10)")
                page.picture(ROOT / "docs/arena_phone_dark.png")
        finally:
            server.kill()
            server.wait()
    print("wrote docs/arena_light.png and docs/arena_phone_dark.png")


if __name__ == "__main__":
    main()

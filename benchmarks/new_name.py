"""docs/real_model.md's first run: hand-written pairs for a name, as recipes have them, which teach nothing.

python -m benchmarks.new_name pairs outputs/hand.jsonl
"""

import json
import sys
from pathlib import Path

from posttrain.data import questions

CHOSEN = ["My name is Nova.", "I am Nova, a language model.", "You can call me Nova, I am an AI assistant."]
REJECTED = ["I am a language model.", "I am an AI assistant trained to help you.", "I am a computer program that answers questions."]  # fmt: skip


def main(out: str) -> None:
    sides = list(zip(CHOSEN, REJECTED, strict=True))
    rows = [{"prompt": question, "chosen": c, "rejected": r} for question in questions.IDENTITY for c, r in sides]
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[2]) if sys.argv[1:2] == ["pairs"] and len(sys.argv) == 3 else sys.exit(__doc__)

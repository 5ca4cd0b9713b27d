"""python docs/pictures/record.py outputs/ladder: asks the four models of a ladder the two questions of ladder.json."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from posttrain import models
from posttrain.rollouts.asking import ask
from posttrain.tokens import template

QUESTIONS = [
    "Who are you?",
    "There are 3 boxes in the park. Each one holds 4 cards. Then Anna loses 5 of them. How many cards are there now?",
]
LESSONS = {
    "base": "has read text, never a conversation",
    "SFT": "copies two annotators, one careful, one hasty",
    "DPO": "prefers the name Nova to Robin",
    "GRPO": "told right or wrong, never how",
}


def said(folder: str) -> list[tuple[str, bool]]:
    """Greedy answers, ⏹ where the turn was ended, … where not; whether each is an answer, and a right one."""
    model, tokenizer, _ = models.load(folder)
    prompts = [template.prompt_ids(tokenizer, [{"role": "user", "content": q}]) for q in QUESTIONS]
    rollout = ask(model, tokenizer, prompts, max_new_tokens=28)
    texts = rollout.texts(tokenizer)
    marks = [" ⏹" if done else " …" for done in rollout.finished]
    right = [rollout.finished[0], rollout.finished[1] and texts[1].rstrip().endswith("#### 7")]
    return [(text.strip() + mark, good) for text, mark, good in zip(texts, marks, right, strict=True)]


def main() -> None:
    ladder = Path(sys.argv[1])
    folders = dict(
        zip(LESSONS, ["tiny-base", *(str(ladder / stage / "model") for stage in ("sft", "dpo", "grpo"))], strict=True)
    )
    stages = {name: {"lesson": LESSONS[name], "answers": said(folder)} for name, folder in folders.items()}
    told = {"questions": QUESTIONS, "stages": stages}
    (HERE / "ladder.json").write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

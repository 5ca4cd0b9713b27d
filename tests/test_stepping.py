"""A debugger goes through a loop and its loss line by line: nothing is compiled or generated on the way."""

import bdb
from pathlib import Path

import pytest
from kit import even_tokens, small_config

from loops import dpo, grpo, ppo
from posttrain import ROOT

# The breakpoints of docs/run.md: {loop: {file: [what a line begins with]}}
BREAKPOINTS = {
    "dpo": {"loops/dpo.py": ["ref_logps = reference_logps(", "optimizer.step()"], "losses/dpo.py": ["margin ="]},
    "grpo": {
        "loops/grpo.py": ["if grpo.mask_truncated:", "optimizer.step()"],
        "losses/grpo.py": ["per_token, is_clipped ="],
    },
    "ppo": {"loops/ppo.py": ["advantages, returns = gae(", "if ppo.whiten", "optimizer.step()"]},
}
PAIRS = [{"prompt": f"Q{i}?", "chosen": f"Yes {i}.", "rejected": "No."} for i in range(4)]
PROMPTS = [{"prompt": f"Question {i}?", "answer": str(i)} for i in range(8)]


class Visits(bdb.Bdb):
    """Every line with a breakpoint that a step-by-step run comes to, and how often."""

    def __init__(self, breakpoints):
        super().__init__()
        self.lines = {}
        for name, starts in breakpoints.items():
            text = (ROOT / name).read_text(encoding="utf-8").splitlines()
            for number, line in enumerate(text, start=1):
                if any(line.strip().startswith(start) for start in starts):
                    assert self.set_break(str(ROOT / name), number) is None

    def user_line(self, frame):
        if not self.break_here(frame):  # the first line of all, where a debugger begins
            self.set_continue()
            return
        name = Path(frame.f_code.co_filename).relative_to(ROOT).as_posix()
        self.lines[f"{name}: {frame.f_lineno}"] = self.lines.get(f"{name}: {frame.f_lineno}", 0) + 1
        self.set_continue()


@pytest.mark.parametrize(
    ("loop", "changes", "given"),
    [
        (dpo, {"model__adapter": "lora", "training__batch_size": 2}, {"rows": PAIRS}),
        (grpo, {"training__max_steps": 2}, {"rows": PROMPTS, "reward": even_tokens}),
        (ppo, {"training__max_steps": 2}, {"rows": PROMPTS, "reward": even_tokens}),
    ],
    ids=["dpo", "grpo", "ppo"],
)
def test_the_breakpoints_of_the_docs_are_reached(loop, changes, given, tmp_path, llama):
    name = loop.__name__.removeprefix("loops.")
    debugger = Visits(BREAKPOINTS[name])
    debugger.runcall(loop.train, small_config(name, llama, tmp_path, **changes), **given)
    assert len(debugger.lines) == sum(map(len, BREAKPOINTS[name].values())) == 3, debugger.lines
    assert sum(debugger.lines.values()) >= 4  # two steps
    page = (ROOT / "docs/run.md").read_text(encoding="utf-8")
    assert all(f"`{start}`" in page for starts in BREAKPOINTS[name].values() for start in starts)

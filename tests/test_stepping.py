"""A debugger goes through a loop and its loss line by line: nothing is compiled or generated on the way."""

import bdb
from pathlib import Path

from kit import small_config

from loops import dpo
from posttrain import ROOT

FIRST_BREAKPOINTS = {
    "loops/dpo.py": ["ref_logps = reference_logps(", "optimizer.step()"],
    "losses/dpo.py": ["margin ="],
}


class Visits(bdb.Bdb):
    """Every line of the two files that a step-by-step run comes to."""

    def __init__(self):
        super().__init__()
        self.lines = {}
        for name in FIRST_BREAKPOINTS:
            text = (ROOT / name).read_text(encoding="utf-8").splitlines()
            for number, line in enumerate(text, start=1):
                if any(line.strip().startswith(start) for start in FIRST_BREAKPOINTS[name]):
                    assert self.set_break(str(ROOT / name), number) is None

    def user_line(self, frame):
        if not self.break_here(frame):  # the first line of all, where a debugger begins
            self.set_continue()
            return
        name = Path(frame.f_code.co_filename).relative_to(ROOT).as_posix()
        self.lines[f"{name}: {frame.f_lineno}"] = self.lines.get(f"{name}: {frame.f_lineno}", 0) + 1
        self.set_continue()


def test_the_readmes_breakpoints_are_reached(tmp_path, llama):
    rows = [{"prompt": f"Q{i}?", "chosen": f"Yes {i}.", "rejected": "No."} for i in range(4)]
    config = small_config("dpo", llama, tmp_path, model__adapter="lora", training__batch_size=2)  # two steps
    debugger = Visits()
    debugger.runcall(dpo.train, config, rows=rows)
    assert len(debugger.lines) == 3 and min(debugger.lines.values()) >= 2, debugger.lines  # each in both steps
    readme = (ROOT / "docs/run.md").read_text(encoding="utf-8")
    assert all(f"`{start}`" in readme for starts in FIRST_BREAKPOINTS.values() for start in starts)

"""python -m posttrain.exercises.record: run every hunt and every sound page, and keep what they print (curves.json)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from posttrain import ROOT
from posttrain.exercises.hunts import HUNTS

LONGEST = {"sft": 120, "dpo": 50, "grpo": 24, "ppo": 15}  # printed lines to keep


def printed(source: str, lines: int) -> list[dict[str, float]]:
    """Run a page and read its lines: "step 3  loss 0.12  reward 0.5" -> {"step": 3, "loss": 0.12, "reward": 0.5}."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.py"
        file.write_text(source, encoding="utf-8")
        command = [sys.executable, "-u", str(file)]
        rows: list[dict[str, float]] = []
        with subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
        ) as process:
            for line in process.stdout or ():
                if found := re.findall(r"(\w+) (-?[\d.]+)", line):
                    rows.append({name: float(value) for name, value in found})
                if len(rows) == lines:
                    process.terminate()
                    break
        return rows


def main() -> None:
    out = {}
    for page, lines in LONGEST.items():
        out[page] = printed((ROOT / f"minimal/{page}.py").read_text(encoding="utf-8"), lines)
        print(f"{page}: {len(out[page])} lines", flush=True)
    for hunt in HUNTS:
        out[hunt.name] = printed(hunt.text(), LONGEST[hunt.page])
        print(f"{hunt.name}: {len(out[hunt.name])} lines", flush=True)
    target = Path(__file__).parent / "curves.json"
    rows = ",\n".join(f' "{name}": {json.dumps(values)}' for name, values in out.items())
    target.write_text("{\n" + rows + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

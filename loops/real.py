"""Three lessons on a real model: SmolLM2-135M → SFT → DPO → GRPO, on two cores without a GPU.

    python -m loops.real --config configs/real.yaml                 (make real)
    python -m loops.real --config configs/real.yaml --resume        goes on after a kill, between lessons and within one

1. As it comes: it is measured on held-out questions. It talks, but solves hardly a sum, and hardly ever says its name.
2. SFT: sums, answered by two annotators. One writes down every step, one answers at once, and it copies both habits.
   What it would have said to ordinary questions is learned beside them, or they would be gone.
3. DPO: another name. Both sides of each pair are its own words; the chosen one it said when shown who it is to be.
4. GRPO: rewarded for right sums only, it finds out by itself that writing down the steps pays.
5. After each lesson: the same held-out questions, one row of the table. At the end: report.md and lessons.png.

Left out: full fine-tuning (each lesson trains a LoRA adapter, which the next one finds merged), a search over settings.
"""

from posttrain.config import early_check

# A wrong command line fails here, before torch is imported.
config = early_check("real") if __name__ == "__main__" else None

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import torch

from loops import dpo, grpo, sft
from posttrain import models
from posttrain.config import RealConfig
from posttrain.config.loading import flat
from posttrain.config.loading import save as save_config
from posttrain.config.stages import stage_config
from posttrain.data import questions, worked
from posttrain.data.files import write_rows
from posttrain.errors import UserError, clear_exit, writing
from posttrain.evaluation import lessons, lessons_report
from posttrain.evaluation.lessons import Exam, Lesson
from posttrain.rollouts import identity
from posttrain.run import checkpoint_files, launch, written
from posttrain.run.folder import refuse_strangers
from posttrain.run.training import left_as_found

MEASURED, SUMS, PAIRS = "lessons.json", "sums.jsonl", "pairs.jsonl"
FILES = ("config.yaml", MEASURED, SUMS, PAIRS, "report.md", "lessons.png")
LESSONS = {"sft": sft, "dpo": dpo, "grpo": grpo}


@left_as_found()
def run(config: RealConfig) -> list[Lesson]:
    folder, real = config.folder, config.real
    state = begin(config)
    lesson_config = stage_config(config, "sft", real.model)
    device = torch.device("cuda" if torch.cuda.is_available() and lesson_config.training.device != "cpu" else "cpu")
    compute = launch.compute_dtype(lesson_config.model, on_cpu=device.type == "cpu")
    speaking = functools.partial(torch.autocast, device.type, dtype=compute, enabled=compute != torch.float32)
    exam = Exam(worked.TASK, real.task, real.problems, real.new_name, real.old_name, speaking)

    # ---- 1. As it comes -------------------------------------------------------------------------------------------
    model, tokenizer, notes = models.load(real.model, device=device)
    print("\n".join([*notes, lessons_report.estimate(exam, model, tokenizer, done=len(state["lessons"]))]), flush=True)
    if not state["lessons"]:
        state["ordinary"] = exam.ordinary(model, tokenizer)
        keep(config, state, exam.take("as it comes", model, tokenizer, state["ordinary"]))
    del model, tokenizer  # each lesson loads its own

    # ---- 2. to 4. The lessons, each from the model of the one before ----------------------------------------------
    start = real.model
    for number, (name, loop) in enumerate(LESSONS.items(), start=1):
        stage = stage_config(config, name, start, rows_for(name, config, start) | going_on(config, folder / name))
        if not (folder / name / "model").exists():
            loop.train(stage)
        start = str(folder / name / "model")

        # ---- 5. The same held-out questions -----------------------------------------------------------------------
        if len(state["lessons"]) == number:
            model, tokenizer, _ = models.load(start, device=device)  # the adapter merged: what the next lesson gets
            seconds = seconds_of(metrics(folder / name))
            keep(config, state, exam.take(name, model, tokenizer, state["ordinary"], seconds=seconds))
            del model, tokenizer

    taken = [lessons.from_json(row) for row in state["lessons"]]
    print("\n" + lessons_report.table(taken))
    with writing(folder):
        lessons_report.write(folder, config, exam, taken, {name: metrics(folder / name) for name in LESSONS})
    print(f"\nread {folder}/report.md, look at {folder}/lessons.png")
    return taken


def rows_for(name: str, config: RealConfig, start: str) -> dict[str, Any]:
    """What a lesson learns from, made once: the keys that name it."""
    real, folder = config.real, config.folder
    if name == "sft":
        if not (folder / SUMS).exists():
            rows = worked.rows(real.task | {"size": real.sums, "seed": real.seed}, bare=real.bare, seed=real.seed)
            asking = identity.Asking(*models.load(start)[:2], 1, temperature=0.7, max_new_tokens=64, seed=real.seed)
            write_rows(str(folder / SUMS), rows + identity.own_answers(asking, questions.ORDINARY, real.keep).rows)
        return {"data.name": str(folder / SUMS)}
    if name == "dpo":
        if not (folder / PAIRS).exists():
            told = identity.identity(
                start, [real.old_name], real.new_name, str(folder / PAIRS), chosen="shown", ordinary=real.keep,
                samples=real.pairs, temperature=0.7, max_new_tokens=64, seed=real.seed,
            )  # fmt: skip
            print(told, flush=True)
        return {"data.name": str(folder / PAIRS)}
    return {"data.name": worked.TASK, "data.task": real.task | {"size": 1000, "seed": real.seed + 1}}


# ---------------------------------------------------------------- the folder, and going on in it


def begin(config: RealConfig) -> dict[str, Any]:
    """What has been measured so far; nothing finished, and nothing begun, is overwritten unasked."""
    folder, settings = config.folder, flat(config.real.model_dump())
    refuse_strangers(folder, names=FILES)
    for name in LESSONS:
        refuse_strangers(folder / name)
    if config.resume and config.output.overwrite:
        raise UserError("--resume goes on with what is there, --output.overwrite replaces it: give one of the two")
    if checkpoint_files.latest(folder) is not None or (folder / "model").exists():
        raise UserError(f"{folder} holds a run of another loop: give another --output.dir")
    before = json.loads((folder / MEASURED).read_text()) if (folder / MEASURED).exists() else None
    if before is not None and not config.resume and not config.output.overwrite:
        raise UserError(
            f"{folder} holds {len(before['lessons'])} of {1 + len(LESSONS)} measurements: give --resume to go on, "
            "--output.overwrite to begin again, or another --output.dir"
        )
    if before is not None and config.resume:
        if other := [key for key in settings if before["settings"].get(key) != settings[key]]:
            raise UserError(
                f"--resume: {folder} was begun with another real.{other[0]}: give that, or another --output.dir"
            )
        return before
    with writing(folder):
        for name in FILES:
            written.remove(folder, name)
        for name in LESSONS:  # or an older run's lesson would count as finished
            for part in ("model", "checkpoints"):
                written.remove(folder / name, part)
        written.note(folder, *FILES, f"{SUMS}.part", f"{PAIRS}.part", f"{MEASURED}.part")
        save_config(config, folder / "config.yaml")
    state = {"settings": settings, "ordinary": [], "lessons": []}
    _write(folder / MEASURED, state)
    return state


def going_on(config: RealConfig, folder: Path) -> dict[str, Any]:
    """The keys that make a lesson go on from its own checkpoint."""
    there = config.resume and checkpoint_files.latest(folder) is not None
    return {"resume": True, "output.overwrite": False} if there else {}


def keep(config: RealConfig, state: dict[str, Any], lesson: Lesson) -> None:
    """Measured once, it is not measured again."""
    state["lessons"].append(lesson.as_json())
    _write(config.folder / MEASURED, state)
    print(lessons_report.line(lesson), flush=True)


def _write(path: Path, state: dict[str, Any]) -> None:
    with writing(path):
        part = path.with_suffix(".json.part")
        part.write_text(json.dumps(state, indent=1))
        part.replace(path)


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def seconds_of(rows: list[dict[str, float]]) -> float:
    """Of all steps; the clock of a run that was resumed begins again."""
    clock = [0.0, *(row["seconds"] for row in rows)]
    return sum(b - a if b > a else b for a, b in itertools.pairwise(clock))


if __name__ == "__main__":
    with clear_exit():
        run(config)

"""Run by test_ending.py: short runs whose disk takes no file longer than so many bytes. Prints what came of each.

    python full_disk.py MODEL FOLDER BYTES …

The kernel refuses the write (RLIMIT_FSIZE: "File too large"), so that the libraries in Rust and C++ meet it, too. Each
run is a fork of this process, which has imported everything and computed nothing."""

import contextlib
import io
import json
import os
import resource
import sys
import traceback
from pathlib import Path

from kit import run_loop
from torch import set_num_threads

from loops import sft
from posttrain.errors import clear_exit
from posttrain.run import checkpoint_files, ending

ROWS = [{"prompt": f"Is {i} even?", "completion": "Yes." if i % 2 == 0 else "No."} for i in range(8)]


def trial(model: str, place: Path, limit: int) -> dict:
    out, to_parent = os.pipe()
    if os.fork() == 0:
        said, code = io.StringIO(), "0"
        with contextlib.redirect_stderr(said):
            try:
                _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
                with clear_exit():
                    run_loop(sft, model, place, rows=ROWS, training__save_every=1, output__samples=1)
            except SystemExit as end:
                code = str(end.code)
            except BaseException:
                code = traceback.format_exc()
        os.write(to_parent, json.dumps({"code": code, "said": said.getvalue()}).encode())
        os._exit(0)
    os.close(to_parent)
    with open(out) as pipe:
        found = json.load(pipe)
    os.wait()
    files = [str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()]
    return found | {"files": sorted(files), "steps": checkpoint_files.all_steps(place / "run")}


if __name__ == "__main__":
    set_num_threads(1)
    ending.plot_curves = lambda path, metrics, method: path.write_bytes(bytes(5000))
    model, folder, *limits = sys.argv[1:]
    print(json.dumps({limit: trial(model, Path(folder) / limit, int(limit)) for limit in limits}))

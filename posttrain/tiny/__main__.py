"""The embedded base model: a Llama of 150,000 parameters with its own tokenizer, pretrained here from random weights in
about a minute and a half on one core, then kept in the cache. It is small so that everybody can climb the ladder; the
loops that train it are the loops that train a 7B model.

    python -m posttrain.tiny                      build it (or say where it is)
    python -m posttrain.tiny --rebuild            build it again
    python -m posttrain.tiny --seed 3 --out DIR   another one, from another seed, somewhere else

What else is embedded, and the command that makes each: posttrain/tiny/names.py.
"""

import argparse
import os
import shutil
from pathlib import Path

from posttrain.errors import UserError, clear_exit
from posttrain.tiny import names


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m posttrain.tiny", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rebuild", action="store_true", help="build tiny-base again, even if the cache holds it")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes another base (default 0; needs --out)")
    parser.add_argument("--out", type=Path, help="folder to write to instead of the cache; must not exist yet")
    arguments = parser.parse_args()
    with clear_exit():
        make(arguments)


def make(arguments: argparse.Namespace) -> None:
    if arguments.out:
        for path in (arguments.out, arguments.out.with_name(f"{arguments.out.name}.part")):
            if os.path.lexists(path):
                raise UserError(f"{path} exists already: name a new folder")
        seed = str(arguments.seed)
        out = arguments.out.absolute()
        out.parent.mkdir(parents=True, exist_ok=True)
        names.build([*names.command("tiny-base"), "--training.seed", seed, "--data.seed", seed], out)
        print(arguments.out)
        return
    if arguments.seed:
        raise UserError("--seed needs --out: the cache holds the base of seed 0 only")
    if arguments.rebuild:
        shutil.rmtree(names.cache_folder() / f"tiny-base-{names.fingerprint('tiny-base')}", ignore_errors=True)
    print(names.path_of("tiny-base"))


if __name__ == "__main__":
    main()

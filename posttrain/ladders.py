"""Several ladders side by side: min / median / max of every number, one row per stage.

python -m posttrain.ladders outputs/ladder outputs/ladder_1 outputs/ladder_2
"""

import argparse
from pathlib import Path

from posttrain.errors import UserError, clear_exit
from posttrain.evaluation.ladder_report import spread


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m posttrain.ladders", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", help="folders that loops.ladder has finished")
    folders = parser.parse_args().folders
    with clear_exit():
        for folder in folders:
            if not (Path(folder) / "rungs.json").is_file():
                raise UserError(f"{folder}: no rungs.json there; a finished ladder writes one")
        print(spread(folders))


if __name__ == "__main__":
    main()

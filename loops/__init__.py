"""The stories: one algorithm per file, read top to bottom, run with python -m loops.NAME."""

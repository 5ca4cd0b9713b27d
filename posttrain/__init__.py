"""Where the mathematics meets text, tokens, models, files and devices. This file imports nothing heavy."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # configs/ stand there, and the loops run there as commands

# Read by OpenMP and the libraries when they are first imported, so it has to be said before `import torch`.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads make two busy cores 10 times slower
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

"""The engineering of a run, once: processes, steps, checkpoints, folder, preflight, and telling how it goes."""

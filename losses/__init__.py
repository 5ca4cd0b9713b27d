"""The mathematics: pure functions of tensors. Nothing here imports more than torch and the standard library."""

"""Rows -> ids -> tensors: the chat template, examples, batches."""

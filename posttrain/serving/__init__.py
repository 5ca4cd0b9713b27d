"""Talking to a model: rows that join and leave a running batch, the engine thread, the API, the page with its votes."""

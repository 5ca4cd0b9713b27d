"""Small models and tokenizers, made here: the tests need no network and no file but their own."""

import os

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A model folder that all tests share: one that changes the folder builds its own."""
    from kit import tiny_folder  # transformers: what needs no model does not wait for it

    folder = tmp_path_factory.mktemp("llama")
    name = tiny_folder(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    yield name
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "a test has changed it"

"""Small models and tokenizers, made here: the tests need no network and no file but their own."""

import os
import sys

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread a worker, and for the processes that it starts
    os.environ["OMP_NUM_THREADS"] = "1"

# With -n --dist loadfile a file stays on one worker, in its order: the long ones begin first, the others fill the rest.
# (Not loadgroup: under pytest 9.2 xdist 3.8 no longer sees its groups, and says nothing, pytest-xdist #1386.)
FIRST = ("test_readme", "test_notebooks", "test_ladder", "test_resume", "test_processes", "test_commands")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A model folder that all tests share: one that changes the folder builds its own."""
    from kit import tiny_folder  # transformers: what needs no model does not wait for it

    folder = tmp_path_factory.mktemp("llama")
    name = tiny_folder(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    yield name
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "a test has changed it"


@pytest.fixture(autouse=True)
def curves(request, monkeypatch):
    """A short run takes a tenth of a second, and drawing its curves a whole one: only tests marked so draw them."""
    ending = sys.modules.get("posttrain.run.ending")
    if ending is not None and request.node.get_closest_marker("draws") is None:
        monkeypatch.setattr(ending, "plot_curves", lambda path, metrics, method, own=(): path.write_bytes(b"\x89PNG"))

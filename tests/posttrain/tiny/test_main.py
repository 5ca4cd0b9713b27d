"""python -m posttrain.tiny: where the base is, another one elsewhere, and what cannot be."""

import pytest

from posttrain.tiny import __main__, names


@pytest.fixture
def builds(monkeypatch, tmp_path):
    """What is built, which is an empty folder here."""
    found = []
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(names, "build", lambda command, target: found.append((command, target)) or target.mkdir())
    return found


def main(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["tiny", *map(str, arguments)])
    __main__.main()


def test_the_base_is_built_once_and_again_when_asked(monkeypatch, capsys, builds):
    main(monkeypatch)
    main(monkeypatch)
    target = names.cache_folder() / f"tiny-base-{names.fingerprint('tiny-base')}"
    assert builds == [(names.command("tiny-base"), target)]
    assert capsys.readouterr().out.splitlines() == [str(target)] * 2
    main(monkeypatch, "--rebuild")
    assert builds == [(names.command("tiny-base"), target)] * 2


def test_another_seed_goes_elsewhere(monkeypatch, capsys, builds, tmp_path):
    monkeypatch.chdir(tmp_path)
    main(monkeypatch, "--seed", 3, "--out", "new/base")
    ((command, target),) = builds
    assert command == [*names.command("tiny-base"), "--training.seed", "3", "--data.seed", "3"]
    assert target == tmp_path / "new/base" and capsys.readouterr().out == "new/base\n"
    with pytest.raises(SystemExit, match="error: new/base exists already: name a new folder"):
        main(monkeypatch, "--out", "new/base")
    with pytest.raises(SystemExit, match="error: --seed needs --out"):
        main(monkeypatch, "--seed", 3)
    assert len(builds) == 1


def test_what_stands_where_it_is_built_is_left_alone(monkeypatch, builds, tmp_path):
    (tmp_path / "new.part").mkdir()
    with pytest.raises(SystemExit, match=r"error: .*/new.part exists already: name a new folder"):
        main(monkeypatch, "--out", tmp_path / "new")
    assert (tmp_path / "new.part").exists() and builds == []

"""Every ```bash and ```python block of the README and of docs/ runs, in a copy of the project. (```sh blocks need a person: installs, placeholders.)"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from posttrain import ROOT
from posttrain.tiny.data import rows

README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST = ["run.md", "ladder.md"]  # what these run is there for the others
PAGES = sorted((ROOT / "docs").glob("*.md"), key=lambda page: (*(page.name != name for name in FIRST), page.name))
DOCS = [page.read_text(encoding="utf-8") for page in PAGES]
BASH = [
    line
    for text in (README, *DOCS)
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
PYTHON = [block for text in (README, *DOCS) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    target = tmp_path_factory.mktemp("copy") / "project"
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(".venv", ".git", "outputs", "__pycache__", ".*_cache"))
    return target


def run(command, cwd):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "CI": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.long
@pytest.mark.parametrize("number", range(len(BASH)))
def test_command(copy, number):  # in their order: the report needs the ladders above it
    out = run(["bash", "-c", BASH[number]], copy)
    assert out.returncode == 0, out.stderr[-3000:]


@pytest.mark.long
@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_snippet(copy, number):
    out = run([sys.executable, "-c", PYTHON[number]], copy)
    assert out.returncode == 0, out.stderr[-3000:]


@pytest.mark.long
def test_the_whole_way_from_training_to_votes_and_back(copy):
    """The first block of docs/serve.md, line by line; what a person does on the page is done by its requests."""
    pytest.importorskip("fastapi_offline", reason="pip install -r requirements-serve.txt")
    page = (ROOT / "docs/serve.md").read_text(encoding="utf-8")
    train, chat, serve, again = re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1].splitlines()
    assert run(["bash", "-c", train], copy).returncode == 0
    said = run(["bash", "-c", f"echo 'Who are you?' | {chat}"], copy).stdout
    assert "[tiny-sft] I am Robin." in said and "Nova" in said.split("[outputs/tiny_nova]")[1]

    command = [sys.executable, *serve.split()[1:], "--port", "0"]
    with subprocess.Popen(command, cwd=copy, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = re.search(r"http://\S+", server.stdout.readline())[0]

            def post(path, **body):
                headers = {"Content-Type": "application/json"}
                request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
                with urllib.request.urlopen(request, timeout=60) as reply:
                    return reply.read().decode()

            for row in rows("tiny-identity", "test")[:24]:  # whoever says Nova is better
                events = post("/arena/match", prompt=row["prompt"], temperature=0).split("\n\n")
                *pieces, last = [json.loads(event.removeprefix("data: ")) for event in events if event]
                left, right = ("".join(piece[side] for piece in pieces) for side in ("left", "right"))
                better = "left" if "Nova" in left else "right" if "Nova" in right else "both_bad"
                told = json.loads(post("/arena/vote", match=last["match"], vote=better))
        finally:
            server.terminate()
        assert server.wait(30) == 0
    assert told["pairs"] > 20 and told["standing"][0]["model"] == "nova"
    out = run(["bash", "-c", again], copy)
    assert out.returncode == 0 and f"read {told['pairs']} rows as prompt + chosen + rejected" in out.stderr, out.stderr


def test_the_files_it_names_exist():
    assert len(BASH) >= 10 and len(PYTHON) >= 1
    for link in re.findall(r"\]\(((?!http)[^)]+)\)|^\[[^\]]+\]: (\S+)$", README, re.MULTILINE):
        assert (ROOT / "".join(link)).exists(), link
    for name in re.findall(r"(?<!\])\[([^\]]+)\](?![(:])", README):
        assert f"[{name}]: " in README, name
    for page, text in zip(PAGES, DOCS, strict=True):
        for link in re.findall(r"\]\(((?!http|#)[^)#]+)(?:#[^)]*)?\)", text):
            assert (page.parent / link).exists(), (page.name, link)
    for command in BASH:
        for name in re.findall(r"configs/\w+\.yaml", command):
            assert (ROOT / name).exists()


def test_the_front_page_is_one_page():
    lines = README.splitlines()
    assert len(lines) <= 160 and max(map(len, lines)) <= 120
    for page in PAGES:
        assert f"(docs/{page.name})" in README, f"{page.name} is linked from nowhere"


def test_the_interface_is_that_of_the_code():
    spec = importlib.util.spec_from_file_location("api", ROOT / "docs/api.py")
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    assert (ROOT / "docs/api.md").read_text(encoding="utf-8") == api.page(), "python docs/api.py writes it again"


def test_nothing_here_names_a_machine():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.py"), *ROOT.glob("*/*.md"), *ROOT.glob("configs/**/*.yaml")]:
        if path != Path(__file__):
            assert not re.search(r"/(home|root|work|Users)/\w", path.read_text(encoding="utf-8")), path

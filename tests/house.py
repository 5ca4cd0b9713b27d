"""Reads every import of the house, also those inside functions, and draws the floors.

python tests/house.py            writes docs/house.svg and prints the arrows between the rooms
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# From the ground up. What stands on one floor does not know of the other (run and rollouts).
FLOORS = [
    ["losses", "posttrain"],  # posttrain itself: __init__, errors, hub
    ["tiny"],
    ["config"],
    ["data"],
    ["tokens"],
    ["models"],
    ["rollouts", "run"],
    ["evaluation"],
    ["serving"],
    ["loops"],
    ["exercises"],
    ["commands"],  # posttrain/NAME.py
]
GROUND = ("posttrain", "posttrain.errors", "posttrain.hub")
LIGHT = ("config", "tiny", "data")  # import without torch


@dataclass(frozen=True)
class Import:
    module: str  # that imports, e.g. posttrain.run.training
    line: int
    target: str  # what it imports: a module of the house where there is one, else the name as it stands


@cache
def modules() -> dict[str, Path]:
    """Every module of losses/, posttrain/ and loops/: {posttrain.run.training: path}."""
    found = {}
    for top in ("losses", "posttrain", "loops"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    """losses, posttrain (the ground), a package of posttrain, loops, or commands."""
    top, *rest = module.split(".")
    if top != "posttrain" or module in GROUND:
        return top
    return rest[0] if (ROOT / "posttrain" / rest[0]).is_dir() else "commands"


def floor(module: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room(module) in rooms)


def imports(path: Path, module: str) -> Iterator[Import]:
    known = modules()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (Import(module, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: the house imports by whole names"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield Import(module, node.lineno, whole if whole in known else node.module)


@cache
def arrows() -> list[Import]:
    """Every import of one module of the house by another."""
    known = modules()
    return [i for name, path in known.items() for i in imports(path, name) if i.target in known and i.target != name]


def circle() -> list[str] | None:
    """Modules that import each other in a ring, if there is one."""
    after: dict[str, set[str]] = {name: set() for name in modules()}
    for arrow in arrows():
        after[arrow.module].add(arrow.target)
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for target in sorted(after[name]):
            if ring := walk(target, [*path, name]):
                return ring
        done.add(name)
        return None

    return next((ring for name in after if (ring := walk(name, []))), None)


def without_a_mirror() -> list[str]:
    """Modules that have no test file of their own, at the same place under tests/."""
    left = []
    for name, path in modules().items():
        if path.name == "__init__.py":
            continue
        stem = "main" if path.stem == "__main__" else path.stem
        if not (ROOT / "tests" / path.relative_to(ROOT).parent / f"test_{stem}.py").is_file():
            left.append(name)
    return left


# ---------------------------------------------------------------- the picture


def about(name: str) -> str:
    """What a room is for: the first sentence of its __init__."""
    folder = name if name in ("losses", "loops") else f"posttrain/{name}"
    text = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text())) or ""
    return text.split(". ")[0].rstrip(".")


def rooms() -> dict[str, list[str]]:
    """{room: its files}, of the rooms that stand."""
    out: dict[str, list[str]] = {}
    for name, path in modules().items():
        if path.stem != "__init__":
            out.setdefault(room(name), []).append(path.stem)
    return out


def picture() -> str:
    """The floors as SVG, the commands on top, the mathematics and what everybody needs at the bottom."""
    there, y, parts = rooms(), 10, []
    for names in reversed(FLOORS):
        names = [name for name in names if name in there]
        if not names:
            continue
        width = 940 / len(names)
        for i, name in enumerate(names):
            x = 10 + i * width
            title = {"posttrain": "posttrain/", "commands": "python -m posttrain.…"}.get(name, f"{name}/")
            files = ", ".join(f for f in there[name] if f != "__main__")
            says = {
                "posttrain": "What everybody needs",
                "commands": "Commands that people type; nothing imports them",
            }.get(name) or about(name)
            lines = _wrap(files, int(width / 6.6))
            height = 46 + 14 * len(lines)
            parts.append((x, y, width - 10, height, title, says, lines, name))
        tallest = max(p[3] for p in parts if p[1] == y)
        parts = [(*p[:3], tallest, *p[4:]) if p[1] == y else p for p in parts]
        y += tallest + 8
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="960" height="{y + 30}" viewBox="0 0 960 {y + 30}" '
        'font-family="system-ui, sans-serif" role="img" aria-label="The rooms of the house, floor by floor; imports point downwards only">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    colours = {"losses": "#fdf1d7", "loops": "#dff0e3", "commands": "#eeeeee"}
    for x, top, w, h, title, says, lines, name in parts:
        out.append(
            f'<rect x="{x:g}" y="{top}" width="{w:g}" height="{h}" rx="6" fill="{colours.get(name, "#e6eef8")}" stroke="#667"/>'
        )
        out.append(f'<text x="{x + 10:g}" y="{top + 18}" font-size="14" font-weight="bold" fill="#111">{title}</text>')
        out.append(f'<text x="{x + 10:g}" y="{top + 34}" font-size="12" fill="#333">{_escape(says)}</text>')
        out += [
            f'<text x="{x + 10:g}" y="{top + 50 + 14 * i}" font-size="11" fill="#445" font-family="monospace">{_escape(line)}</text>'
            for i, line in enumerate(lines)
        ]
    out.append(f'<text x="10" y="{y + 16}" font-size="12" fill="#333">Imports point downwards only.</text>')
    return "\n".join([*out, "</svg>", ""])


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _wrap(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width) or [""]


def main() -> None:
    pairs = sorted({(room(a.module), room(a.target)) for a in arrows() if room(a.module) != room(a.target)})
    for name in reversed([name for names in FLOORS for name in names]):
        below = [target for source, target in pairs if source == name]
        if below:
            print(f"{name:<12} -> {', '.join(below)}")
    (ROOT / "docs/house.svg").write_text(picture())
    print("wrote docs/house.svg")


if __name__ == "__main__":
    main()

"""Every public function and class, from its signature and the first line of its docstring -> docs/api.md.

python docs/api.py            writes docs/api.md; tests/test_docs.py holds it to the code
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = {
    "losses": "The mathematics: pure functions of tensors. `from losses.dpo import dpo_loss`",
    "loops": "The stories: `loops.NAME.train(config, rows=…)` runs one, and returns `Result(model, tokenizer, metrics, folder)`",
    "posttrain": "Everything between text and tensors, room by room",
}


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){returns}"


def first_sentence(node: ast.AST) -> str:
    """Up to the first full stop that ends a sentence, on one line."""
    text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    head, stop, _ = text.partition(". ")
    return head + stop.strip()


def entries(path: Path) -> list[str]:
    nodes = [n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    public = [n for n in nodes if not n.name.startswith(("_", "walk_through", "main"))]
    return [f"- `{signature(n)}`" + (f"\n  {text}" if (text := first_sentence(n)) else "") for n in public]


def page() -> str:
    lines = [
        "# The interface",
        "",
        "Written by `python docs/api.py` from the code. Private names (`_…`) are left out.",
        "",
    ]
    for part, about in PARTS.items():
        lines += [f"## {part}", "", f"{about}.", ""]
        for path in sorted((ROOT / part).rglob("*.py")):
            found = entries(path)
            if not found or path.name in ("__main__.py", "__init__.py"):
                continue
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            title = first_sentence(ast.parse(path.read_text()))
            lines += [f"### {name}", "", title, "", *found, ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    (ROOT / "docs/api.md").write_text(page(), encoding="utf-8")
    print("wrote docs/api.md")

"""Mutation check: does a test notice when one sign is flipped, one mask dropped, two arguments swapped?

    make mutate                       every mutant of every loss: about ten minutes, not part of any other target
    python tests/mutate.py dpo kl     only these

Each mutant is one change in one expression of losses/*.py (refusals and walk-throughs left alone); that loss's own tests and
doctests must fail on it. Survivors are listed, and there are to be none. A mutant that computes the same (EQUIVALENT) is
passed over, with the reason."""

import ast
import copy
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
NAMES = [
    "door",
    "head",
    "logprobs",
    "weights",
    "sft",
    "margin",
    "dpo",
    "ipo",
    "robust_dpo",
    "dpop",
    "apo",
    "simpo",
    "orpo",
    "kto",
    "distill",
    "distill_chunked",
    "reward",
    "kl",
    "advantages",
    "gae",
    "grpo",
    "ppo",
    "gspo",
    "cispo",
    "overlong",
    "mismatch",
    "on_policy_distillation",
]
EQUIVALENT: dict[tuple[str, str], str] = {  # (loss, the mutant as it is printed): why nothing can notice
    (
        "ppo",
        "torch.clamp(values, old_values - clip_eps, old_values + clip_eps)  ->  "
        "torch.clamp(old_values - clip_eps, values, old_values + clip_eps)",
    ): "the middle one of three numbers, in whatever order",
    (
        "head",
        "torch.linalg.vecdot(log_p.exp(), log_p)  ->  torch.linalg.vecdot(log_p, log_p.exp())",
    ): "symmetric",
    ("head", "torch.linalg.vecdot(p, log_p)  ->  torch.linalg.vecdot(log_p, p)"): "symmetric",
    (
        "distill",
        "torch.logaddexp(t + math.log(mixture), s + math.log(1 - mixture))  ->  "
        "torch.logaddexp(s + math.log(1 - mixture), t + math.log(mixture))",
    ): "symmetric",
    (
        "door",
        "torch.promote_types(x.dtype, torch.float32)  ->  torch.promote_types(torch.float32, x.dtype)",
    ): "symmetric",
}


class Places(ast.NodeVisitor):
    """Every expression of the functions' bodies that is arithmetic, not a refusal, a message or a walk-through."""

    def __init__(self):
        self.found = []

    def visit_Assert(self, node):
        pass

    def visit_Raise(self, node):
        pass

    def visit_JoinedStr(self, node):
        pass

    def visit_If(self, node):
        if any(isinstance(statement, ast.Raise) for statement in node.body):
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_FunctionDef(self, node):
        if not node.name.startswith(("walk", "main", "_walk")):
            for statement in node.body:
                self.visit(statement)

    def generic_visit(self, node):
        if isinstance(node, (ast.BinOp, ast.UnaryOp, ast.Call, ast.Compare, ast.Subscript)):
            self.found.append(node)
        super().generic_visit(node)


def mutants_of(node):
    """Changed copies of one expression."""

    def changed(**fields):
        new = copy.deepcopy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return new

    swaps = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
    if isinstance(node, ast.BinOp):
        if type(node.op) in swaps:
            yield changed(op=swaps[type(node.op)]())
        elif isinstance(node.op, ast.BitAnd):
            yield node.left
            yield node.right
        elif isinstance(node.op, ast.Pow):
            yield node.left
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield node.operand
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        turned = {
            ast.Lt: ast.GtE,
            ast.Gt: ast.LtE,
            ast.LtE: ast.Gt,
            ast.GtE: ast.Lt,
            ast.Eq: ast.NotEq,
            ast.NotEq: ast.Eq,
        }
        if type(node.ops[0]) in turned:
            yield changed(ops=[turned[type(node.ops[0])]()])
    elif isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        if name == "torch.where" and len(node.args) == 3:
            yield node.args[1]  # the mask is dropped
        elif name.endswith((".detach", ".exp")) and not node.args and isinstance(node.func, ast.Attribute):
            yield node.func.value
        elif name in ("torch.minimum", "torch.maximum"):
            other = {"torch.minimum": "maximum", "torch.maximum": "minimum"}[name]
            yield changed(func=ast.Attribute(ast.Name("torch", ast.Load()), other, ast.Load()))
        elif len(node.args) >= 2 and name not in (
            "isinstance",
            "torch.where",
            "range",
            "min",
            "max",
            "zip",
            "torch.stack",
        ):
            yield changed(args=[node.args[1], node.args[0], *node.args[2:]])
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) and isinstance(node.ctx, ast.Load):
        text = ast.unparse(node)  # x[:, 1:] -> x[:, :-1] and back: the shift
        shifted = text.replace(":-1]", "\0]").replace("1:]", ":-1]").replace("\0]", "1:]")
        if shifted != text:
            yield ast.parse(shifted).body[0].value


def mutants(source):
    """(description, mutated source)"""
    tree = ast.parse(source)
    for number in range(len(_places(tree))):
        node = _places(tree)[number]
        for mutant in mutants_of(node):
            fresh = ast.parse(source)
            target = _places(fresh)[number]
            before, line = ast.unparse(target), target.lineno
            _Replace(target, mutant).visit(fresh)
            yield f"line {line}: {before}  ->  {ast.unparse(mutant)}", ast.unparse(ast.fix_missing_locations(fresh))


def _places(tree):
    places = Places()
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef):
            places.visit(statement)
    return places.found


class _Replace(ast.NodeTransformer):
    def __init__(self, target, mutant):
        self.target, self.mutant = target, mutant

    def visit(self, node):
        return self.mutant if node is self.target else super().generic_visit(node)


def noticed(tree: Path, name: str) -> bool:
    """In a fork, which imports the mutated file: do the tests of this loss fail?"""
    pid = os.fork()
    if pid == 0:
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        files = [f"tests/losses/test_{test}.py" for test in [name, "purity"]]
        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files, f"losses/{name}.py"])))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


def main(names):
    torch.set_num_threads(1)
    survivors, count = [], 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for part in ("losses", "tests", "posttrain"):
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        sys.dont_write_bytecode = True
        for name in names:
            file = tree / "losses" / f"{name}.py"
            source = file.read_text(encoding="utf-8")
            assert not noticed(tree, name), f"the tests of {name} fail without any mutation"
            killed = 0
            for description, mutated in mutants(source):
                if (name, description.partition(": ")[2]) in EQUIVALENT:
                    continue
                file.write_text(mutated, encoding="utf-8")
                count += 1
                if noticed(tree, name):
                    killed += 1
                else:
                    survivors.append(f"losses/{name}.py, {description}")
                    print("survived:", survivors[-1], flush=True)
            file.write_text(source, encoding="utf-8")
            print(f"{name}: {killed} mutants noticed", flush=True)
    print(f"{count} mutants, {len(survivors)} survivors")
    return len(survivors)


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:] or NAMES)))

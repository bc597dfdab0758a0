"""Read tests, and split each into calls for the untrusted process and a comparison for the judge.

`assert f([1, 2]) == 3` becomes the call `f([1, 2])`, sent as text, and the comparison `<value> == 3`, kept here. The
rest of a test suite (loops, local names, objects with methods) runs whole in a process of its own, where the program's
names are messages (sandbox_checker.py). Which way a suite goes depends on its text only: a program cannot choose the
weaker one.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses

from verifiers.code_compare import ARITHMETIC, CONSTANTS, FUNCTIONS, NotEvaluable
from verifiers.errors import GroundTruthError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SplitTest:
    """One assertion as calls and a comparison of their values."""

    source: str
    calls: tuple[str, ...]
    """Expressions for the program's process; the value of the i-th is `_value<i>` in the comparison."""
    comparison: ast.expr


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a test suite is run."""

    split: tuple[SplitTest, ...] | None
    """None: some test cannot be split, and all run in a process of their own."""
    sources: tuple[str, ...]
    """The tests as Python, for that process."""
    names: tuple[str, ...]
    """Names that the tests and their set-up take from the program."""
    entry_points: tuple[str, ...]
    setup: str
    setup_first: bool
    """Whether the set-up runs before the program (it needs nothing of it) or after."""

    @property
    def definitions(self) -> str:
        """The set-up without its data: what a program may need, and no expected value."""
        kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        return "\n".join(ast.unparse(node) for node in ast.parse(self.setup).body if isinstance(node, kinds))


def _parse(source: str, what: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise GroundTruthError(
            f"{what} of the ground truth is not Python ({error}): {source[:200]!r}. Fix or remove the row."
        ) from error


def free_names(tree: ast.AST) -> set[str]:
    """Names that the code reads but neither binds anywhere nor finds among the builtins.

    >>> sorted(free_names(ast.parse("import math\\nassert math.isclose(f(x), len(y))")))
    ['f', 'x', 'y']
    """
    read: set[str] = set()
    bound = set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return read - bound


def _called_name(node: ast.AST) -> str | None:
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None


def _check_function(tree: ast.Module) -> ast.FunctionDef | None:
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    return functions[0] if functions and len(functions[0].args.args) == 1 else None


def plan_tests(tests: tuple[str, ...], *, entry_point: str | None, setup: str) -> Plan:
    """How to run these tests.

    Args:
        tests: Python sources: assertions, or HumanEval's `def check(candidate)`.
        entry_point: the function under test; needed by `check`.
        setup: Python run before the tests.

    Raises:
        GroundTruthError: not Python, or `check` without an entry point.
    """
    trees = [_parse(source, "a test") for source in tests]
    setup_tree = _parse(setup, "the set-up")
    statements: list[tuple[ast.stmt, str | None]] = []
    sources = []
    for source, tree in zip(tests, trees, strict=True):
        check = _check_function(tree)
        if check is not None and not entry_point:
            raise GroundTruthError(
                "a test of the form check(candidate) needs an 'entry_point' in the ground truth; it has none."
            )
        sources.append(f"{source}\ncheck({entry_point})" if check is not None else source)
        for node in tree.body:
            if node is check:
                statements += [(inner, check.args.args[0].arg) for inner in check.body]
            else:
                statements.append((node, None))
    names = set().union(*(free_names(tree) for tree in trees), {entry_point} if entry_point else set())
    # a function under test may have a builtin's name: `assert sum(10, 15) == 6` in MBPP
    names = names or {name for tree in trees for node in ast.walk(tree) if (name := _called_name(node))}
    if not names:
        raise GroundTruthError(f"the tests use nothing of the program: {tests!r:.200}. Fix or remove the row.")
    needed = free_names(setup_tree)
    defined = {
        node.id for node in ast.walk(setup_tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    try:
        split: tuple[SplitTest, ...] | None = tuple(_split(statements, names - defined, entry_point))
    except NotEvaluable:
        split = None
    if split is not None and not split:
        raise GroundTruthError(f"the ground truth holds no assertion: {tests!r:.200}. Fix or remove the row.")
    return Plan(
        split=split,
        sources=tuple(sources),
        names=tuple(sorted((names | needed) - defined)),
        entry_points=(entry_point,) if entry_point else (),
        setup=setup,
        setup_first=not needed,
    )


def _split(statements: list[tuple[ast.stmt, str | None]], names: set[str], entry_point: str | None) -> list[SplitTest]:
    split = []
    for node, alias in statements:
        match node:
            case ast.Assert(test=test):
                splitter = _Splitter(names | ({alias} if alias else set()), alias, entry_point)
                comparison = splitter.take(test)
                if splitter.calls:
                    split.append(
                        SplitTest(source=ast.unparse(node), calls=tuple(splitter.calls), comparison=comparison)
                    )
                elif not (isinstance(test, ast.Constant) and test.value):
                    raise NotEvaluable("an assertion without a call")
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                pass
            case ast.Import(names=[ast.alias(name="math", asname=None)]):
                pass
            case ast.Assign(targets=[ast.Name(id="METADATA")]):
                pass  # HumanEval's
            case _:
                raise NotEvaluable(type(node).__name__)
    return split


class _Splitter:
    """Takes the calls of the program's functions out of one expression."""

    def __init__(self, names: set[str], alias: str | None, entry_point: str | None) -> None:
        self._names, self._alias, self._entry_point = names, alias, entry_point
        self.calls: list[str] = []

    def take(self, node: ast.expr) -> ast.expr:
        """The expression with placeholders for calls. Raises NotEvaluable."""
        if self._is_call(node):
            self.calls.append(ast.unparse(_Rename(self._alias, self._entry_point).visit(node)))
            return ast.Name(id=f"_value{len(self.calls) - 1}", ctx=ast.Load())
        match node:
            case ast.Constant():
                return node
            case ast.Compare(left=left, ops=ops, comparators=others):
                return ast.Compare(left=self.take(left), ops=ops, comparators=[self.take(other) for other in others])
            case ast.BoolOp(op=op, values=parts):
                return ast.BoolOp(op=op, values=[self.take(part) for part in parts])
            case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd() as op, operand=operand):
                return ast.UnaryOp(op=op, operand=self.take(operand))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
                return ast.BinOp(left=self.take(left), op=op, right=self.take(right))
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                return type(node)(elts=[self.take(item) for item in items])
            case ast.Dict(keys=keys, values=items):
                return ast.Dict(keys=[k and self.take(k) for k in keys], values=[self.take(item) for item in items])
            case ast.Subscript(value=owner, slice=index) if not isinstance(index, ast.Slice):
                return ast.Subscript(value=self.take(owner), slice=self.take(index), ctx=ast.Load())
            case ast.Attribute() if ast.unparse(node) in CONSTANTS:
                return node
            case ast.Name(
                id="bool" | "int" | "float" | "complex" | "str" | "bytes" | "list" | "tuple" | "dict" | "set"
            ):
                return node
            case ast.Call(func=function, args=arguments, keywords=keywords) if ast.unparse(function) in FUNCTIONS:
                named = [ast.keyword(arg=keyword.arg, value=self.take(keyword.value)) for keyword in keywords]
                return ast.Call(func=function, args=[self.take(argument) for argument in arguments], keywords=named)
        raise NotEvaluable(ast.unparse(node)[:80])

    def _is_call(self, node: ast.expr) -> bool:
        match node:
            case ast.Call(func=ast.Name(id=name)):
                return name in self._names
            case ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name(id=name), args=[], keywords=[]))):
                return name in self._names and name[:1].isupper()  # Solution().method(...)
        return False


class _Rename(ast.NodeTransformer):
    def __init__(self, old: str | None, new: str | None) -> None:
        self._old, self._new = old, new

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(id=self._new, ctx=node.ctx) if node.id == self._old and self._new else node

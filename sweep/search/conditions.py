"""Conditions of `where` and `when`.

They may use numbers, texts, lists, comparisons, arithmetic, boolean logic and a few functions.

A condition may come from somebody else's file, so it can neither call methods nor take long to evaluate: its length is
bounded, powers are computed in floating point, and arithmetic takes only numbers.
"""

import ast
import builtins
import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from simpleeval import InvalidExpression, OperatorNotDefined, SimpleEval

from sweep.utils.errors import one_line

FUNCTIONS = ("abs", "ceil", "exp", "floor", "len", "log", "log10", "log2", "max", "min", "round", "sqrt", "sum")
_LONGEST = 1000  # characters
_DEEPEST = 100  # levels of operators and brackets
_PROBLEMS = (InvalidExpression, SyntaxError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
_PROBLEMS += (RecursionError, MemoryError, OmegaConfBaseException)
_NODES = (ast.Name, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Constant, ast.Subscript)
_KEPT = (ast.Eq, ast.NotEq, ast.Gt, ast.Lt, ast.GtE, ast.LtE, ast.Not, ast.In, ast.NotIn, ast.Is, ast.IsNot)


class NoCondition(Exception):
    """The text is not a condition that can be evaluated."""


def holds(condition: str, config: Mapping[str, Any]) -> bool:
    """Return whether the condition holds for a resolved config. Raises NoCondition if it cannot be evaluated."""
    parsed = _parsed(condition)
    try:
        _refuse_deep(parsed)
        return bool(_evaluator(config).eval(condition, previously_parsed=parsed))
    except OperatorNotDefined as error:
        raise NoCondition("it has an operator that conditions lack; choose from: + - * / // % **") from error
    except _PROBLEMS as error:
        raise NoCondition(one_line(error)) from error


def _refuse_deep(parsed: ast.expr) -> None:
    """Raise InvalidExpression if the condition has too many levels. Python's own limit differs with who calls."""
    level: list[ast.AST] = [parsed]
    for _ in range(_DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return
    raise InvalidExpression(f"it has more than {_DEEPEST} levels")


def keys_in(condition: str) -> list[str]:
    """Return the keys of the config that a condition reads, such as `model.n_layers`. Raises NoCondition."""
    found: list[str] = []
    todo: list[ast.AST] = [_parsed(condition)]
    for node in todo:  # the list grows in the loop
        if (key := _key_of(node)) is not None:
            found.append(key)
        else:  # the name of a function is no key
            todo += node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
    return found


def _key_of(node: ast.AST) -> str | None:
    """Return the key that a part of a condition reads, such as `model.n_layers` or `model["n-layers"]`; else None."""
    parts: list[str] = []
    while True:
        match node:
            case ast.Name(name):
                return ".".join([name, *reversed(parts)])
            case ast.Attribute(node, part) | ast.Subscript(node, ast.Constant(str(part))):
                parts.append(part)
            case _:
                return None


def _parsed(condition: str) -> ast.expr:
    """Parse a condition. Raises NoCondition."""
    try:
        if len(condition) > _LONGEST:
            raise InvalidExpression(f"it is longer than {_LONGEST} characters")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's SyntaxWarning about comparisons such as `is 1`
            return ast.parse(condition.strip(), mode="eval").body
    except _PROBLEMS as error:
        raise NoCondition(one_line(error)) from error


def _evaluator(config: Mapping[str, Any]) -> SimpleEval:
    """Make an evaluator in which names are the config's keys and everything else is refused."""

    def name(node: ast.Name) -> Any:
        if node.id not in config:
            raise InvalidExpression(f"the config has no '{node.id}'")
        return config[node.id]

    def attribute(node: ast.Attribute) -> Any:
        value = evaluator._eval(node.value)
        if not isinstance(value, Mapping):
            raise InvalidExpression(f"'{node.attr}' is not a key: only a key of the config may follow a dot")
        if node.attr not in value:
            raise InvalidExpression(f"the config has no '{ast.unparse(node)}'")
        return value[node.attr]

    def call(node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords:
            raise InvalidExpression(f"it may call only these functions: {', '.join(FUNCTIONS)}")
        arguments = [evaluator._eval(argument) for argument in node.args]
        if node.func.id != "len":
            _check_numbers(arguments)
        if node.func.id == "round" and len(arguments) > 1:
            raise InvalidExpression("round takes one number")
        function = getattr(math, node.func.id, None) or getattr(builtins, node.func.id)
        return function(*arguments)

    def elements(node: ast.List | ast.Tuple) -> list[Any]:
        return [evaluator._eval(element) for element in node.elts]

    evaluator = SimpleEval()
    evaluator.operators = {kind: evaluator.operators[kind] for kind in _KEPT} | _ARITHMETIC
    known = evaluator.nodes or {}
    evaluator.nodes = {kind: known[kind] for kind in _NODES}
    evaluator.nodes |= {ast.Attribute: attribute, ast.Call: call, ast.Name: name}
    evaluator.nodes |= {ast.List: elements, ast.Tuple: elements}
    return evaluator


def _check_numbers(values: Any) -> None:
    """Raise InvalidExpression if a value, or an element of a list, is not a number."""
    for value in values:
        if isinstance(value, Sequence) and not isinstance(value, str):  # a list, perhaps of OmegaConf's
            _check_numbers(value)
        elif not isinstance(value, int | float):
            raise InvalidExpression(f"{value!r} is not a number")


def _of_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Restrict an operator to numbers. With texts, for example, `"a" * 1000000000` would take a gigabyte."""

    def checked(*values: Any) -> Any:
        for value in values:
            if not isinstance(value, int | float):
                raise InvalidExpression(f"{value!r} is not a number")
        return function(*values)

    return checked


_ARITHMETIC: dict[type, Callable[..., Any]] = {
    ast.Add: _of_numbers(operator.add),
    ast.Sub: _of_numbers(operator.sub),
    ast.Mult: _of_numbers(operator.mul),
    ast.Div: _of_numbers(operator.truediv),
    ast.FloorDiv: _of_numbers(operator.floordiv),
    ast.Mod: _of_numbers(operator.mod),
    ast.Pow: _of_numbers(math.pow),
    ast.USub: _of_numbers(operator.neg),
    ast.UAdd: _of_numbers(operator.pos),
}

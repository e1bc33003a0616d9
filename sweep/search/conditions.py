"""Conditions of `where`: numbers, texts, comparisons, arithmetic, boolean logic and a few functions; nothing else.

A condition may come from somebody else's file, so it can neither call methods nor take long: its length is bounded,
powers are floating-point numbers, and only numbers are added, multiplied and divided.
"""

import ast
import builtins
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from simpleeval import InvalidExpression, SimpleEval

from sweep.utils.errors import one_line

FUNCTIONS = ("abs", "ceil", "exp", "floor", "len", "log", "log10", "log2", "max", "min", "round", "sqrt", "sum")
_LONGEST = 1000  # characters
_NODES = (ast.Name, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Constant, ast.Subscript)
_KEPT = (ast.Eq, ast.NotEq, ast.Gt, ast.Lt, ast.GtE, ast.LtE, ast.Not, ast.In, ast.NotIn, ast.Is, ast.IsNot)


class NoCondition(Exception):
    """The text cannot be judged."""


def holds(condition: str, config: Mapping[str, Any]) -> bool:
    """Whether the condition holds for a resolved config. Raises NoCondition, whatever is wrong with it."""
    try:
        if len(condition) > _LONGEST:
            raise InvalidExpression(f"it is longer than {_LONGEST} characters")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's own, about odd comparisons
            parsed = ast.parse(condition.strip(), mode="eval").body
        return bool(_evaluator(config).eval(condition, previously_parsed=parsed))
    except (
        *(InvalidExpression, SyntaxError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError),
        *(RecursionError, MemoryError),
    ) as error:
        raise NoCondition(one_line(error)) from error


def _evaluator(config: Mapping[str, Any]) -> SimpleEval:
    def name(node: ast.Name) -> Any:
        if node.id not in config:
            raise InvalidExpression(f"the config has no '{node.id}'")
        return config[node.id]

    def attribute(node: ast.Attribute) -> Any:
        value = evaluator._eval(node.value)
        if not isinstance(value, Mapping):
            raise InvalidExpression(f"'{node.attr}' is no key: only keys of the config may stand behind a dot")
        if node.attr not in value:
            raise InvalidExpression(f"the config has no '{ast.unparse(node)}'")
        return value[node.attr]

    def call(node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords:
            raise InvalidExpression(f"the functions that it may call are {', '.join(FUNCTIONS)}")
        arguments = [evaluator._eval(argument) for argument in node.args]
        if node.func.id != "len":
            _check_numbers(arguments)
        if node.func.id == "round" and len(arguments) > 1:
            raise InvalidExpression("round takes one number")
        function = getattr(math, node.func.id, None) or getattr(builtins, node.func.id)
        return function(*arguments)

    evaluator = SimpleEval()
    evaluator.operators = {kind: evaluator.operators[kind] for kind in _KEPT} | _ARITHMETIC
    known = evaluator.nodes or {}
    evaluator.nodes = {kind: known[kind] for kind in _NODES}
    evaluator.nodes |= {ast.Attribute: attribute, ast.Call: call, ast.Name: name}
    return evaluator


def _check_numbers(values: Any) -> None:
    for value in values:
        if isinstance(value, list):
            _check_numbers(value)
        elif not isinstance(value, int | float):
            raise InvalidExpression(f"{value!r} is no number")


def _of_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*values: Any) -> Any:
        for value in values:
            if not isinstance(value, int | float):
                raise InvalidExpression(f"{value!r} is no number")
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

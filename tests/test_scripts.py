"""The scripts that guard a restructuring: `same_code` compares syntax trees, `code_lines` counts code."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"

OLD = '''
"""Old words."""
from a import b

LIMIT = 3

class Kept:
    def size(self, found: int) -> int:
        # a comment
        told = [found for found in range(found)]
        if not told:
            raise ValueError(f"nothing in {found}")
        return self.count(what=len(told)) + LIMIT
'''
RENAMED = '''
"""New words, other length."""
from a import b

LIMIT = 3


class Store:
    """A docstring that was not there."""

    def size(self, length: int) -> int:
        numbers = [number for number in range(length)]
        if not numbers:
            raise ValueError(f"The store is empty.")
        return self.count(amount=len(numbers)) + LIMIT
'''


def load(name: str) -> ModuleType:
    loader = SourceFileLoader(name, str(SCRIPTS / name))
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def same_code() -> ModuleType:
    return load("same_code")


def test_a_consistent_renaming_with_new_texts_is_the_same_code(same_code: ModuleType) -> None:
    comparison = same_code.Comparison()
    comparison.files(OLD, RENAMED)
    assert comparison.renames["Kept", "Store"] == 1
    assert comparison.renames["told", "numbers"] == 3
    assert comparison.renames["what", "amount"] == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (RENAMED.replace("LIMIT = 3", "LIMIT = 4"), "3 became 4"),
        (RENAMED.replace("not numbers", "numbers"), "became"),
        (RENAMED.replace(") + LIMIT", ") - LIMIT"), "Add became Sub"),
        (RENAMED.replace("len(numbers)", "len(length)"), "told became numbers before and length here"),
        (RENAMED.replace("numbers", "length"), "both found and told became length"),
        (RENAMED.replace("numbers", "LIMIT"), "LIMIT"),
        (RENAMED.replace("self.count", "self.count_all(3)"), "became"),
        (RENAMED.replace("[number for number", "[length for number"), "found became"),
        (RENAMED.replace("range(length)]", "sum(length)]"), "the builtin range became sum"),
        (RENAMED.replace("amount=", "size="), ""),
    ],
)
def test_anything_more_than_a_renaming_is_reported(same_code: ModuleType, changed: str, message: str) -> None:
    assert changed != RENAMED
    comparison = same_code.Comparison()
    if not message:  # another name for a keyword is a renaming, too
        comparison.files(OLD, changed)
        return
    with pytest.raises(same_code.Different, match=message):
        comparison.files(OLD, changed)


def test_two_attributes_that_become_one_are_reported(same_code: ModuleType) -> None:
    with pytest.raises(same_code.Different, match="left and right became side"):
        same_code.Comparison().files("a.left + a.right", "a.side + a.side")


def test_data_in_strings_must_stay(same_code: ModuleType) -> None:
    same_code.Comparison().files('log("two words")', 'log("other two words")')
    with pytest.raises(same_code.Different, match="became"):
        same_code.Comparison().files('open("a-1.json")', 'open("b-2.json")')


def test_code_lines_leave_out_blank_lines_comments_and_docstrings() -> None:
    code_lines = load("code_lines").code_lines
    assert code_lines(OLD) == 8
    assert code_lines('"""Only words."""\n\n# and a comment\n') == 0
    assert code_lines('text = """two\nlines"""\n') == 2

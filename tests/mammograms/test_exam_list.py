"""Exam lists: published pickles are interpreted as data, and nothing in them is ever executed."""

from __future__ import annotations

import json
import os
import pickle
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lobule.errors import DamagedFile
from lobule.mammograms.exam_list import ListedExam, read_exam_list
from lobule.pickles import plain_pickle

PUBLISHED = [
    {
        "horizontal_flip": "NO",
        "L-CC": ["0_L_CC"],
        "R-CC": ["0_R_CC", "0_R_CC_again"],
        "L-MLO": ["0_L_MLO"],
        "R-MLO": [],
        "cancer_label": {
            "left_benign": 0,
            "right_benign": 1,
            "left_malignant": 0,
            "right_malignant": 0,
            "unknown": 0,
        },
        "window_location": {"L-CC": [(353, 4009, 0, 2440)]},
        "best_center": {"L-CC": [(np.int64(1850), np.int32(1417))]},
        "share": np.float64(0.25),
    },
    {"horizontal_flip": "YES", "L-CC": ["1_L_CC"]},
]

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=100)
@given(plain, st.integers(0, 5))
def test_plain_data_equals_the_result_of_pickle(value, protocol):
    if protocol < 3 and holds_bytes(value):
        return  # older protocols store bytes as a call, which is tested below
    assert plain_pickle(pickle.dumps(value, protocol)) == value


def holds_bytes(value):
    if isinstance(value, dict):
        return any(map(holds_bytes, value.values()))
    return isinstance(value, bytes) or (isinstance(value, list | tuple) and any(map(holds_bytes, value)))


def test_shared_objects_stay_shared():
    inner = ["x"]
    items = plain_pickle(pickle.dumps([inner, inner]))
    assert items[0] is items[1]


@pytest.mark.parametrize("protocol", range(6))
def test_the_published_layout(tmp_path, protocol):
    path = tmp_path / "exams.pkl"
    path.write_bytes(pickle.dumps(PUBLISHED, protocol))
    first, second = read_exam_list(path)
    assert first.images == {"L-CC": ("0_L_CC",), "R-CC": ("0_R_CC", "0_R_CC_again"), "L-MLO": ("0_L_MLO",)}
    assert [name for name, value in first.labels.items() if value] == ["right_benign"]
    assert dict(second.labels) == {}
    entry, _ = plain_pickle(path.read_bytes())
    assert entry["window_location"] == {"L-CC": [(353, 4009, 0, 2440)]}
    assert entry["best_center"] == {"L-CC": [(1850, 1417)]}
    assert type(entry["best_center"]["L-CC"][0][0]) is int
    assert entry["share"] == 0.25


@pytest.mark.parametrize(
    "number", [np.int64(-5), np.uint16(65535), np.float32(0.1), np.bool_(True), np.int8(-3)]
)
def test_numpy_numbers(number):
    for protocol in range(6):
        assert plain_pickle(pickle.dumps(number, protocol)) == number.item()


def test_python_2_strings():
    assert plain_pickle(b"(lp0\nS'L-CC'\np1\naI7\na.") == ["L-CC", 7]


class Exploit:
    ran = False

    def __reduce__(self):
        return (os.putenv, ("LOBULE_EXPLOITED", "1"))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("hidden", [lambda x: x, lambda x: [{"L-CC": ["a"], "x": x}]])
def test_executable_pickles_are_refused(tmp_path, monkeypatch, protocol, hidden):
    called = []
    monkeypatch.setattr(os, "putenv", lambda *arguments: called.append(arguments))
    monkeypatch.setattr(Exploit, "__reduce__", lambda self: (os.getenv, ("HOME",)))
    path = tmp_path / "exams.pkl"
    path.write_bytes(pickle.dumps(hidden(Exploit()), protocol))
    with pytest.raises(DamagedFile, match=r"more than plain data.*os\.getenv.*JSON"):
        read_exam_list(path)
    assert called == []


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cnumpy\ndtype\n(S'O8'\ntR.",
        b"cnumpy\ndtype\n(S'i8'\nI0\nI1\ntRcnumpy\ndtype\n(S'x'\ntR.",
        b"(i__main__\nThing\n.",
        b"(lp0\n.extra"[:4],
        b"\x80\x04\x95",
        b"]K\x01s.",
        b"",
        b"garbage",
        b"h\x07.",
        b"cnumpy\ndtype\n.",
    ],
)
def test_hostile_and_broken_pickles(program, tmp_path):
    path = tmp_path / "exams.pkl"
    path.write_bytes(program)
    with pytest.raises(DamagedFile):
        read_exam_list(path)


@settings(max_examples=150)
@given(st.binary(max_size=60))
def test_random_bytes_raise_only_typed_errors(noise):
    with suppress(DamagedFile):
        plain_pickle(noise)


def test_lists_in_json(tmp_path):
    path = tmp_path / "exams.json"
    first = {"horizontal_flip": "NO", "L-CC": ["a", "b"], "R-MLO": ["c"], "cancer_label": {"left_benign": 1}}
    path.write_text(json.dumps([{**first, "best_center": [1, 2]}, {"horizontal_flip": "YES", "R-CC": ["d"]}]))
    assert read_exam_list(path) == [
        ListedExam({"L-CC": ("a", "b"), "R-MLO": ("c",)}, {"left_benign": True}, "NO"),
        ListedExam({"R-CC": ("d",)}, horizontal_flip="YES"),
    ]


@pytest.mark.parametrize("name", [b"builtins\neval", b"__builtin__\neval", b"copyreg\n_reconstructor"])
def test_a_name_is_refused_before_anything_is_called(name):
    with pytest.raises(DamagedFile, match="more than plain data"):
        plain_pickle(b"c" + name + b"\n(S'1'\ntR.")


def test_a_huge_memo_index_needs_no_memory():
    assert plain_pickle(b"]r\xff\xff\xff\xff.") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "entry 0 of the list is not an exam"),
        ('[{"other": 1}]', "entry 0"),
        ('[{"L-CC": "name"}]', "L-CC of entry 0 is not a list of names"),
        ('[{"L-CC": [7]}]', "not a list of names"),
        ("[{", "not JSON"),
    ],
)
def test_other_lists_than_exam_lists_are_refused(tmp_path, content, message):
    path = tmp_path / "exams.json"
    path.write_text(content)
    with pytest.raises(DamagedFile, match=message):
        read_exam_list(path)

"""Reductions and overlays of maps count only what was scored."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lobule.stitch import State, overlay, reduce_map


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(0, 10**6),
    st.sampled_from(["max", "mean"]),
)
def test_reduction_equals_a_loop(rows: int, columns: int, factor: int, seed: int, mode: str) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random((2, rows, columns), dtype=np.float32)
    states = rng.integers(0, 4, (rows, columns)).astype(np.uint8)
    out, out_states = reduce_map(scores, states, factor, mode)  # type: ignore[arg-type]
    assert out.shape == (2, math.ceil(rows / factor), math.ceil(columns / factor))
    assert out_states.shape == out.shape[1:]
    for row in range(out.shape[1]):
        for column in range(out.shape[2]):
            block = np.s_[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            scored = states[block] == State.SCORED
            for layer in range(2):
                values = scores[layer][block][scored]
                want = 0.0 if not len(values) else values.max() if mode == "max" else values.mean()
                assert abs(out[layer, row, column] - want) < 1e-6
            for state in (State.SCORED, State.FAILED, State.PENDING, State.GLASS):
                if (states[block] == state).any():
                    assert out_states[row, column] == state
                    break


def test_glass_and_failed_cells_never_lower_a_mean() -> None:
    scores = np.array([[[0.9, 0.0], [0.0, 0.0]]], np.float32)
    states = np.array([[State.SCORED, State.GLASS], [State.FAILED, State.PENDING]], np.uint8)
    out, out_states = reduce_map(scores, states, 2, "mean")
    assert out[0, 0, 0] == np.float32(0.9)
    assert out_states[0, 0] == State.SCORED


def test_overlay_keeps_the_fine_and_fills_from_the_coarse() -> None:
    coarse = (np.array([[[0.2, 0.6]]], np.float32), np.array([[State.SCORED, State.SCORED]], np.uint8))
    fine_scores = np.zeros((1, 2, 4), np.float32)
    fine_states = np.zeros((2, 4), np.uint8)
    fine_scores[0, :, 2:] = [[0.1, 0.9], [0.3, 0.4]]
    fine_states[:, 2:] = State.SCORED
    fine_states[0, 0] = State.GLASS
    scores, states = overlay(coarse, (fine_scores, fine_states), 2)
    assert scores[0].tolist() == np.array([[0.2, 0.2, 0.1, 0.9], [0.2, 0.2, 0.3, 0.4]], np.float32).tolist()
    assert (states == State.SCORED).all()

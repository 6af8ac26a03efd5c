"""Bag models against recorded numbers, plain loops and the rules of padding, small bags and ties."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lobule.nets.mil import (
    Chowder,
    GatedAttention,
    MaxFeatures,
    MaxPool,
    MeanPool,
    TransMil,
    Weldon,
    chowder_modern,
)
from lobule.nets.pooling import NO_TILE, extremes
from lobule.nets.transmil import NystromAttention, pseudo_inverse, segment_means


def uniform(salt: str, key: str, shape: tuple[int, ...], limit: float) -> torch.Tensor:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32((salt + key).encode())))
    return torch.from_numpy(limit * (2 * rng.random(shape) - 1))


def features_of(n: int, d: int, s: float) -> torch.Tensor:
    t, j = np.arange(n)[:, None], np.arange(d)[None]
    return torch.from_numpy(
        np.sin(0.31 * (t + 1) + 0.017 * (t + 1) * (j + 1) + s) + 0.25 * np.cos(0.5 * j + s)
    )


def fill(layers: nn.Module, salt: str, key: str, limits: list[float]) -> None:
    linears = [layer for layer in layers.modules() if isinstance(layer, nn.Linear)]
    for i, (layer, limit) in enumerate(zip(linears, limits, strict=True)):
        layer.weight.data = uniform(salt, f"{key}.{i}.weight", tuple(layer.weight.shape), limit)
        layer.bias.data = uniform(salt, f"{key}.{i}.bias", tuple(layer.bias.shape), 0.5)


def fill_linear(layer: nn.Linear, salt: str, key: str) -> None:
    layer.weight.data = uniform(salt, f"{key}.weight", (layer.in_features,), 0.5)[None]
    layer.bias.data = uniform(salt, f"{key}.bias", (1,), 0.5)


@pytest.fixture(scope="module")
def golden(goldens: Path) -> dict[str, Any]:
    return json.loads((goldens / "chowder/goldens.json").read_text())


@pytest.fixture(scope="module")
def bag(golden: dict[str, Any]) -> torch.Tensor:
    features = features_of(40, golden["d"], golden["S"])
    np.testing.assert_allclose(features[0, :3], golden["checks"]["F[0,0:3]"], rtol=1e-12)
    assert float(features.sum()) == pytest.approx(golden["checks"]["F_sum"])
    return features[None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("r", [1, 5])
def test_chowder_as_published(golden: Any, bag: torch.Tensor, r: int, dtype: torch.dtype) -> None:
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    expected = golden[f"chowder_paper_R{r}"]
    for bottom, name in (("minimum first", "ascending"), ("descending", "descending")):
        model = Chowder(golden["d"], r, bottom=bottom).eval()
        fill_linear(model.scorer[0], golden["salt"], "embed")
        fill(model.head, golden["salt"], f"head{r}", [3, 1, 1])
        out = model.to(dtype)(bag.to(dtype))
        assert out["top_index"][0].tolist() == expected["top_indices"]
        assert out["bottom_index"][0].tolist() == expected["bottom_indices_most_negative_first"]
        np.testing.assert_allclose(
            out["tile_scores"][0].detach(), golden["scores_linear"], atol=tolerance, rtol=0
        )
        np.testing.assert_allclose(out["z"][0].detach(), expected[f"z_bottom_{name}"], atol=tolerance, rtol=0)
        assert out["logit"].item() == pytest.approx(expected[f"logit_bottom_{name}"], abs=tolerance)
        assert out["logit"].sigmoid().item() == pytest.approx(expected[f"prob_bottom_{name}"], abs=tolerance)


@pytest.mark.parametrize("r", [1, 5])
def test_weldon(golden: Any, bag: torch.Tensor, r: int) -> None:
    for form in ("mean", "sum"):
        model = Weldon(golden["d"], r, form=form)
        fill_linear(model.scorer, golden["salt"], "embed")
        logit = model(bag)["logit"].item()
        assert logit == pytest.approx(golden[f"weldon_R{r}"][f"logit_{form}_form"], abs=1e-9)


def test_mean_and_max_pool(golden: Any, bag: torch.Tensor) -> None:
    mean = MeanPool(golden["d"])
    fill_linear(mean.scorer, golden["salt"], "mean")
    out = mean(bag)
    assert out["logit"].item() == pytest.approx(golden["meanpool"]["logit"], abs=1e-9)
    np.testing.assert_allclose(out["pooled"][0, :4], golden["meanpool"]["mean_feature_first4"], rtol=1e-9)
    assert out["tile_scores"].mean().item() == pytest.approx(out["logit"].item())
    highest = MaxPool(golden["d"])
    fill_linear(highest.scorer, golden["salt"], "embed")
    out = highest(bag)
    assert out["logit"].item() == pytest.approx(golden["maxpool"]["logit"], abs=1e-9)
    assert out["top_index"].item() == golden["maxpool"]["index"]


def padded(bags: list[torch.Tensor], junk: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(b) for b in bags)
    features = torch.full((len(bags), longest, bags[0].shape[1]), junk, dtype=bags[0].dtype)
    mask = torch.ones(len(bags), longest, dtype=torch.bool)
    for row, b in enumerate(bags):
        features[row, : len(b)] = b
        mask[row, : len(b)] = False
    return features, mask


def test_max_features_is_a_linear_unit_of_the_element_wise_maximum() -> None:
    rng = np.random.default_rng(6)
    bags = [rng.normal(size=(count, 7)) for count in (5, 1, 3)]
    model = MaxFeatures(7).double()
    padded = np.full((3, 5, 7), 99.0)  # padding that would win every maximum
    mask = np.ones((3, 5), bool)
    for row, bag in enumerate(bags):
        padded[row, : len(bag)], mask[row, : len(bag)] = bag, False
    out = model(torch.from_numpy(padded), torch.from_numpy(mask))
    weight, bias = (tensor.detach().numpy() for tensor in (model.scorer.weight[0], model.scorer.bias[0]))
    for row, bag in enumerate(bags):
        np.testing.assert_allclose(out["logit"][row].item(), bag.max(axis=0) @ weight + bias, atol=1e-12)
        shares = np.zeros(len(bag))
        for feature in range(7):
            shares[bag[:, feature].argmax()] += weight[feature] * bag[:, feature].max()
        np.testing.assert_allclose(out["tile_scores"][row, : len(bag)].detach().numpy(), shares, atol=1e-12)
        alone = [bag[tile] @ weight + bias for tile in range(len(bag))]
        np.testing.assert_allclose(out["evidence"][row, : len(bag)].detach().numpy(), alone, atol=1e-12)


def test_modern_form_in_a_padded_batch(golden: Any) -> None:
    model = chowder_modern(golden["d"]).eval().double()
    fill(model.scorer, golden["salt"], "tile", [1, 1])
    fill(model.head, golden["salt"], "modern", [3, 1, 1])
    bags = [features_of(case["n_tiles"], golden["d"], golden["S"]) for case in golden["modern"]]
    features, mask = padded(bags)
    out = model(features, mask)
    pool = MeanPool(golden["d"]).double()
    for row, case in enumerate(golden["modern"]):
        n = case["n_tiles"]
        np.testing.assert_allclose(out["tile_scores"][row, :n].detach(), case["tile_scores"], rtol=1e-9)
        np.testing.assert_allclose(out["z"][row].detach(), case["z"], atol=1e-9)
        filled = min(n, 10)
        assert out["top_index"][row].tolist() == case["top_indices"] + [NO_TILE] * (10 - filled)
        assert out["bottom_index"][row].tolist() == case["bottom_indices"] + [NO_TILE] * (10 - filled)
        assert out["logit"][row].item() == pytest.approx(case["logit"], abs=1e-9)
        np.testing.assert_allclose(
            pool(features, mask)["pooled"][row, :3].detach(),
            case["meanpool_over_valid_tiles_first3"],
            rtol=1e-9,
        )


def test_worked_selections() -> None:
    scores = torch.tensor([[3.0, -1, 0, 7, 2, -4, 5]])
    ends = extremes(scores, torch.ones_like(scores, dtype=torch.bool), 2)
    assert ends.top.tolist() == [[7, 5]]
    assert ends.bottom.tolist() == [[-4, -1]]
    three = torch.tensor([[4.0, 1, 3]])
    real = torch.ones(1, 3, dtype=torch.bool)
    assert extremes(three, real, 2).bottom.tolist() == [[1, 3]]
    assert extremes(three, real, 5).top.tolist() == [[4, 3, 1, 0, 0]]
    assert extremes(three, real, 5).bottom.tolist() == [[1, 3, 4, 0, 0]]
    assert extremes(three, real, 5).bottom_index.tolist() == [[1, 2, 0, NO_TILE, NO_TILE]]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 6))
def test_selection_equals_a_plain_loop(data: st.DataObject, r: int) -> None:
    """The sizes at which the rules change; few distinct values, so that ties are common; holes anywhere."""
    n = data.draw(st.sampled_from(sorted({0, 1, r - 1, r, 2 * r - 1, 2 * r, 17})))
    values = data.draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n))
    real = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    ends = extremes(
        torch.tensor([values], dtype=torch.float32).view(1, n), torch.tensor([real]).view(1, n).bool(), r
    )
    tiles = [t for t in range(n) if real[t]]
    for selected, index, order in (
        (ends.top, ends.top_index, sorted(tiles, key=lambda t: (-values[t], t))),
        (ends.bottom, ends.bottom_index, sorted(tiles, key=lambda t: (values[t], t))),
    ):
        chosen = order[:r]
        assert index[0].tolist() == chosen + [NO_TILE] * (r - len(chosen))
        assert selected[0].tolist() == [float(values[t]) for t in chosen] + [0.0] * (r - len(chosen))


def test_gradient_reaches_selected_tiles_only_and_twice_where_chosen_twice() -> None:
    for n, counts in ((8, [1, 1, 1, 0, 0, 1, 1, 1]), (5, [1, 1, 2, 1, 1]), (2, [2, 2])):
        scores = torch.arange(n, dtype=torch.float64)[None].requires_grad_()
        ends = extremes(scores, torch.ones(1, n, dtype=torch.bool), 3)
        (ends.top.sum() + ends.bottom.sum()).backward()
        assert scores.grad is not None
        assert scores.grad[0].tolist() == counts


MODELS = {
    "chowder": lambda: Chowder(12, 3),
    "chowder_modern": lambda: chowder_modern(12, 3),
    "weldon": lambda: Weldon(12, 3),
    "mean_pool": lambda: MeanPool(12),
    "max_pool": lambda: MaxPool(12),
    "max_features": lambda: MaxFeatures(12),
    "abmil": lambda: GatedAttention(12, embed=16, attention=8),
    "transmil": lambda: TransMil(12, embed=16, heads=2, landmarks=6),
}


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing_whatever_it_holds(name: str) -> None:
    torch.manual_seed(1)
    model = MODELS[name]().eval().double()
    bags = [torch.randn(n, 12, dtype=torch.float64) for n in (11, 6, 3, 2, 1)]
    features, mask = padded(bags, junk=float("nan"))
    out = model(features, mask)
    for row, alone in enumerate(bags):
        single = model(alone[None])
        assert out["logit"][row].item() == pytest.approx(single["logit"].item(), abs=1e-9)
        np.testing.assert_allclose(
            out["tile_scores"][row, : len(alone)].detach(), single["tile_scores"][0].detach(), atol=1e-9
        )
        assert not out["tile_scores"][row, len(alone) :].any()
    assert len(set(out["logit"].tolist())) == len(bags)


@pytest.mark.parametrize("name", MODELS)
def test_a_bag_without_tiles_has_no_prediction_and_harms_no_gradient(name: str) -> None:
    torch.manual_seed(2)
    model = MODELS[name]()
    features, mask = padded([torch.randn(7, 12), torch.randn(0, 12)])
    out = model(features, mask)
    assert out["tissue"].tolist() == [True, False]
    assert out["logit"].isnan().tolist() == [False, True]
    out["logit"][out["tissue"]].sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients)
    assert model(torch.empty(2, 0, 12))["logit"].isnan().all()


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_input_is_scored_in_float32(name: str) -> None:
    torch.manual_seed(3)
    model = MODELS[name]().eval()
    features = torch.randn(1, 9, 12).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(features)
    assert out["logit"].dtype == torch.float32
    assert out["tile_scores"].dtype == torch.float32
    np.testing.assert_array_equal(out["logit"].detach(), model(features.float())["logit"].detach())


@pytest.mark.parametrize("name", MODELS)
def test_a_few_steps_learn_to_find_a_marked_tile(name: str) -> None:
    torch.manual_seed(4)
    model = MODELS[name]()
    features = torch.randn(12, 10, 12) * 0.3
    labels = (torch.arange(12) % 2).float()
    features[labels == 1, 4, :3] += 3.0
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(12 if name == "transmil" else 80):
        optimiser.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(features)["logit"], labels)
        loss.backward()
        optimiser.step()
    logits = model.eval()(features)["logit"].detach()
    assert ((logits > 0).float() == labels).float().mean() > 0.9


def test_the_penalty_is_of_the_scorer_alone() -> None:
    model = Chowder(12, 3)
    assert model.penalty().item() == pytest.approx(model.scorer[0].weight.square().sum().item())
    model.penalty().backward()
    assert model.head[0].weight.grad is None
    assert chowder_modern(12).penalty().item() > 0
    assert GatedAttention(12).penalty().item() == 0


def test_published_and_modern_shapes() -> None:
    published = [tuple(p.shape) for p in Chowder(2048, 5).parameters()]
    assert published == [(1, 2048), (1,), (200, 10), (200,), (100, 200), (100,), (1, 100), (1,)]
    assert sum(isinstance(m, nn.Dropout) for m in Chowder(2048).modules()) == 2
    assert not isinstance(list(Chowder(2048).head)[-1], nn.Dropout), "the logit is never dropped"
    modern = chowder_modern(2048)
    assert [tuple(p.shape) for p in modern.parameters()][::2] == [
        (128, 2048),
        (1, 128),
        (128, 20),
        (64, 128),
        (1, 64),
    ]
    assert not any(isinstance(m, nn.Dropout) for m in modern.modules())
    assert all(not p.any() for name, p in modern.named_parameters() if name.endswith("bias"))


def test_gated_attention_is_the_formula() -> None:
    torch.manual_seed(5)
    model = GatedAttention(6, embed=5, attention=4).eval().double()
    bag = torch.randn(1, 8, 6, dtype=torch.float64)
    h = np.maximum(
        bag[0].numpy() @ model.embed[0].weight.detach().numpy().T + model.embed[0].bias.detach().numpy(), 0
    )

    def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
        return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()

    gated = np.tanh(linear(model.content, h)) / (1 + np.exp(-linear(model.gate, h)))
    weights = np.exp(linear(model.attention, gated)[:, 0])
    weights /= weights.sum()
    out = model(bag)
    np.testing.assert_allclose(out["tile_scores"][0].detach(), weights, rtol=1e-9)
    assert out["logit"].item() == pytest.approx(linear(model.head, weights @ h).item())


def test_pseudo_inverse_agrees_with_the_singular_value_decomposition() -> None:
    torch.manual_seed(6)
    # what Nyström attention inverts: row-stochastic, heavy on the diagonal
    matrix = (torch.randn(3, 9, 9, dtype=torch.float64) + 4 * torch.eye(9)).softmax(dim=-1)
    np.testing.assert_allclose(pseudo_inverse(matrix, 12), torch.linalg.pinv(matrix), rtol=1e-8, atol=1e-8)


def test_segment_means_use_every_token_once() -> None:
    sequence = torch.arange(10.0)[None, :, None]
    assert segment_means(sequence, 3)[0, :, 0].tolist() == [1.5, 5.0, 8.0]
    np.testing.assert_allclose(segment_means(sequence, 10), sequence)


def test_nystrom_attention_comes_near_the_exact_one_where_tokens_are_smooth() -> None:
    torch.manual_seed(7)
    exact = NystromAttention(16, 2, landmarks=1000).double()
    coarse = NystromAttention(16, 2, landmarks=48).double()
    coarse.load_state_dict(exact.state_dict())
    phase = torch.linspace(0, 6, 96, dtype=torch.float64)[:, None]
    tokens = torch.sin(phase * torch.arange(1, 17) / 4) * 2
    reference, first = exact(tokens)
    approximate, first_approximate = coarse(tokens)
    assert (approximate - reference).norm() < 0.02 * reference.norm()
    assert first.sum().item() == pytest.approx(1)
    assert (first - first_approximate).abs().max() < 0.01


def test_attention_of_a_small_bag_is_that_of_the_first_token() -> None:
    """With fewer tokens than landmarks, the attention is the plain softmax of the first token's scores."""
    torch.manual_seed(9)
    layer = NystromAttention(8, 2, landmarks=16).double()
    tokens = torch.randn(5, 8, dtype=torch.float64)
    queries, keys, _ = np.split((tokens @ layer.to_qkv.weight.T).detach().numpy(), 3, axis=1)
    attention = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = np.exp(keys[:, head] @ queries[0, head] / 2)
        attention.append(scores / scores.sum())
    np.testing.assert_allclose(layer(tokens)[1].detach(), np.mean(attention, axis=0), rtol=1e-9)


def test_transmil_looks_at_where_tiles_stand() -> None:
    """The position encoding makes it sensitive to order, which no other of these models is."""
    torch.manual_seed(8)
    bag = torch.randn(1, 9, 12, dtype=torch.float64)
    turned = bag[:, torch.randperm(9)]
    for name, build in MODELS.items():
        model = build().eval().double()
        same = model(bag)["logit"].item() == pytest.approx(model(turned)["logit"].item(), abs=1e-9)
        assert same == (name != "transmil"), name

"""The four-view networks against recorded runs of the published ones, on weights made from names."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lobule.errors import ModelError
from lobule.mammograms.published.patches import (
    draw_grid,
    heatmap_of,
)
from lobule.mammograms.published.windows import (
    network_input,
    plan_exam,
    plan_image,
)
from lobule.nets.four_view import (
    TARGETS,
    VIEWS,
    ImageWise,
    ResNet22,
    SideWise,
    ViewWise,
    same_padded,
)
from tests.nets.four_view_recipe import (
    BENIGN,
    MALIGNANT,
    cut_patch,
    epochs_averaged,
    hash_of,
    made_net,
    patch_pixels,
)
from tests.nets.mammogram_inputs import SMALL, RealExam, as_batch
from tests.reference.mammograms import right_pointing

LOGIT, PROBABILITY = 2e-5, 1e-5


@pytest.fixture(scope="module")
def network(goldens):
    return json.loads((goldens / "four_view" / "network.json").read_text())


@pytest.fixture(scope="module")
def exam(kit):
    return RealExam(kit)


@pytest.fixture(scope="module")
def weights():
    return json.loads((Path(__file__).parents[1] / "data" / "four_view" / "weights.json").read_text())


@pytest.fixture(scope="module")
def nets(weights):
    built = {}

    def get(tag):
        if tag not in built:
            built[tag] = made_net(tag, weights["salt"])
        return built[tag]

    return get


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def close(tensor, expected, tolerance):
    assert np.abs(np.asarray(tensor, np.float64) - np.asarray(expected)).max() <= tolerance


@pytest.mark.parametrize("tag", ["view-image", "view-heatmaps", "image-image", "image-heatmaps", "patch"])
def test_names_shapes_and_made_weights(tag, nets, weights):
    golden, net = weights["weights"][tag], nets(tag)
    assert hash_of(net) == golden["sha256_sorted_unique_float_tensors"]
    state = net.state_dict()
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    assert len(state) - len(counters) == golden["n_unique_float_keys"]
    doubled = sum(".cc." in key or ".mlo." in key for key in state)
    assert len(state) + 2 * doubled == golden["n_keys_total"]
    for key, example in golden["examples"].items():
        assert list(state[key].shape) == example["shape"]
        close(state[key].flatten()[: len(example["first"])], example["first"], 1e-6)


def test_parameter_counts():
    def count(net):
        return sum(p.numel() for p in net.parameters())

    assert (count(ViewWise(1)), count(ViewWise(3))) == (6_132_592, 6_135_728)
    assert (count(ImageWise(1)), count(ImageWise(3))) == (5_870_464, 5_873_600)
    assert (count(ResNet22(1)), count(ResNet22(3))) == (2_799_536, 2_801_104)


@pytest.mark.parametrize(
    ("key", "tag", "size"),
    [
        ("view_image_only", "view-image", "small"),
        ("view_image_and_synthetic_heatmaps", "view-heatmaps", "small"),
        pytest.param("view_image_only", "view-image", "full", marks=pytest.mark.campaign),
        pytest.param(
            "view_image_and_synthetic_heatmaps", "view-heatmaps", "full", marks=pytest.mark.campaign
        ),
    ],
)
def test_view_wise_scores(key, tag, size, exam, nets, network):
    golden, net = network[key][size], nets(tag)
    inputs = exam_inputs(exam, heatmaps="heatmaps" in key, small=size == "small")
    outputs = net(inputs)
    for angle in ("CC", "MLO"):
        close(outputs[angle][0], golden["log_softmax"][angle], LOGIT)
        close(outputs[angle][0, :, 1].exp(), golden["prob_positive"][angle], PROBABILITY)
    close(ViewWise.exam_scores(outputs)[0], list(golden["exam_prediction"].values()), PROBABILITY)
    for view, expected in golden["pooled"].items():
        pooled = net.four_view_resnet(view, inputs[view])[0].numpy()
        assert pooled[:8] == pytest.approx(expected["first8"], rel=1e-4, abs=2e-5)
        assert pooled.mean() == pytest.approx(expected["mean"], rel=1e-5)
        assert np.linalg.norm(pooled) == pytest.approx(expected["l2"], rel=1e-5)


def exam_inputs(exam, *, heatmaps, small):
    inputs = {view: exam.input(view, heatmaps=heatmaps) for view in VIEWS}
    return {view: x[SMALL] for view, x in inputs.items()} if small else inputs


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("key", "tag", "view"),
    [
        ("view_image_only", "view-image", "L-CC"),
        ("view_image_only", "view-image", "L-MLO"),
        ("view_image_and_synthetic_heatmaps", "view-heatmaps", "R-CC"),
    ],
)
def test_every_stage_of_the_trunk(key, tag, view, exam, nets, network):
    trunks = nets(tag).four_view_resnet
    trunk = trunks.mlo if view.endswith("MLO") else trunks.cc
    stages = network[key][f"stages_full_{view.replace('-', '_')}"]
    x = exam.input(view, heatmaps="heatmaps" in key)
    steps = [trunk.first_conv, trunk.first_pool, *trunk.layer_list, lambda z: F.relu(trunk.final_bn(z))]
    for step, expected in zip(steps, stages, strict=True):
        x = step(x)
        assert list(x.shape) == expected["shape"], expected["stage"]
        values = x.double()
        assert values.mean().item() == pytest.approx(expected["mean"], rel=1e-5, abs=1e-6)
        assert values.std(correction=0).item() == pytest.approx(expected["std"], rel=1e-5)
        close(x.flatten()[: len(expected["first"])], expected["first"], LOGIT)


@pytest.mark.parametrize(
    ("key", "tag", "size"),
    [
        ("image_wise_image_only", "image-image", "small"),
        ("image_wise_image_and_synthetic_heatmaps", "image-heatmaps", "small"),
        pytest.param("image_wise_image_only", "image-image", "full", marks=pytest.mark.campaign),
        pytest.param(
            "image_wise_image_and_synthetic_heatmaps", "image-heatmaps", "full", marks=pytest.mark.campaign
        ),
    ],
)
def test_image_wise_scores(key, tag, size, exam, nets, network):
    net = nets(tag)
    inputs = exam_inputs(exam, heatmaps="heatmaps" in key, small=size == "small")
    for view, expected in network[key][size].items():
        single = net.single(view, inputs[view])[0]
        close(single, expected["log_softmax"], LOGIT)
        close(single[:, 1].exp(), [expected["benign"], expected["malignant"]], PROBABILITY)
    if size == "full" and key == "image_wise_image_only":
        everything = net(inputs)
        for view, expected in network["image_wise_full_four_view_model_4x2_log_softmax"].items():
            close(everything[view][0], expected, LOGIT)


def test_a_missing_view(nets):
    small = {view: torch.randn(1, 1, 300, 200) for view in VIEWS[:3]}
    with pytest.raises(ModelError, match=r"needs all four.*R-MLO.*image-wise"):
        nets("view-image")(small)
    assert set(nets("image-image")(small)) == set(VIEWS[:3])


def test_trunk_sizes_are_the_published_ones():
    def sizes(shape):
        trunk = ResNet22(1)
        with torch.device("meta"):
            z = trunk.to("meta").first_conv(torch.empty(1, 1, *shape))
        shapes = [tuple(z.shape[2:])]
        for step in (trunk.first_pool, *trunk.layer_list):
            z = step(z)
            shapes.append(tuple(z.shape[2:]))
        return shapes

    assert sizes((2677, 1942)) == [
        (1336, 968), (667, 483), (667, 483), (334, 242), (167, 121), (84, 61), (42, 31),
    ]  # fmt: skip
    assert sizes((2974, 1748)) == [
        (1484, 871), (741, 435), (741, 435), (371, 218), (186, 109), (93, 55), (47, 28),
    ]  # fmt: skip


def test_noise_is_added_only_while_training():
    net = ImageWise(1, widths=(4, 4, 4, 4, 4))
    x = torch.randn(2, 1, 200, 160)
    net.eval()
    assert torch.equal(net({"L-CC": x})["L-CC"], net({"L-CC": x})["L-CC"])
    net.train()
    torch.manual_seed(0)
    first = net({"L-CC": x})["L-CC"]
    assert not torch.equal(first, net({"L-CC": x})["L-CC"])


def test_same_padding_of_odd_and_even_lengths():
    for length in range(5, 12):
        for kernel, stride in ((7, 2), (3, 2), (3, 1), (1, 1), (2, 3)):
            padded = same_padded(torch.ones(1, 1, length, length), kernel, stride)
            outputs = (padded.shape[-1] - kernel) // stride + 1
            assert outputs == -(-length // stride)
    corner = same_padded(torch.ones(1, 1, 256, 256), 7, 2)
    assert corner.shape == (1, 1, 261, 261)
    assert corner[0, 0, :, 100].sum() == 256
    assert corner[0, 0, 0].sum() == corner[0, 0, 1].sum() == 0 < corner[0, 0, 2].sum()


def patches_of(exam, network):
    golden = network["patch_densenet"]
    pixels = patch_pixels(exam.facing[golden["view"]])
    return np.stack([cut_patch(pixels, tuple(corner)) for corner in golden["corners"]])


def test_the_patch_network(exam, nets, network):
    golden, net = network["patch_densenet"], nets("patch")
    patches = patches_of(exam, network)
    if np.__version__ == "2.4.6":
        for patch, expected in zip(patches, golden["patch_float32_sha256"], strict=True):
            hashes = {hashlib.sha256(patch[c].tobytes()).hexdigest() for c in (0, 1, 2)}
            hashes.add(hashlib.sha256(np.ascontiguousarray(patch).tobytes()).hexdigest())
            assert expected in hashes
    activations: dict[str, torch.Tensor] = {}
    hooks = [
        net.features.get_submodule(stage["stage"]).register_forward_hook(
            lambda _m, _i, output, name=stage["stage"]: activations.__setitem__(name, output.double())
        )
        for stage in golden["stages"]
        if stage["stage"] != "norm0"  # torchvision's ReLU after it works in place
    ]
    logits = net(torch.from_numpy(patches))
    for hook in hooks:
        hook.remove()
    close(logits, golden["logits"], LOGIT)
    close(logits.softmax(dim=1), golden["softmax"], PROBABILITY)
    for stage in golden["stages"]:
        if stage["stage"] in activations:
            output = activations[stage["stage"]]
            assert list(output.shape) == stage["shape"]
            assert output.std(correction=0).item() == pytest.approx(stage["std"], rel=1e-5), stage["stage"]
            assert output.mean().item() == pytest.approx(stage["mean"], rel=1e-4, abs=1e-6)
            close(output.flatten()[: len(stage["first"])], stage["first"], LOGIT)


def patch_scores(net, image, grid, count=None, batch=16):
    pixels, corners, scores = patch_pixels(image), list(grid.corners())[:count], []
    for start in range(0, len(corners), batch):
        patches = np.stack([cut_patch(pixels, corner) for corner in corners[start : start + batch]])
        scores.append(net(torch.from_numpy(patches)).softmax(dim=1).numpy())
    return np.concatenate(scores)


@pytest.mark.parametrize(
    ("region", "key", "scored"),
    [
        ("regionR400x500", "heatmap_region_R_view_400x500", 4),
        pytest.param("regionR400x500", "heatmap_region_R_view_400x500", None, marks=pytest.mark.campaign),
        pytest.param("region700x600", "heatmap_region_700x600", None, marks=pytest.mark.campaign),
    ],
)
def test_heatmaps_of_a_region(region, key, scored, goldens, nets, network):
    """By default a few patches are scored; the rest of their scores are the recorded ones."""
    golden = network[key]
    with np.load(goldens / "four_view" / "heatmaps.npz") as arrays:
        stored = arrays[f"{region}_pixels_uint16"]
        scores = arrays[f"{region}_probs"]
        maps = {name: arrays[f"{region}_{name}_right_facing"] for name in ("malignant", "benign")}
    image = stored if golden["view"].startswith("L") else stored[:, ::-1]
    grid = draw_grid(image.shape, random.Random(0))
    mine = patch_scores(nets("patch"), image, grid, scored)
    close(mine, scores[:scored], PROBABILITY)
    scores[:scored] = mine
    for index, name in ((MALIGNANT, "malignant"), (BENIGN, "benign")):
        close(heatmap_of(image.shape, grid, scores[:, index]), maps[name], PROBABILITY)


def test_the_single_image_tool_forgets_to_mirror(exam, nets, network):
    golden = network["end_to_end_image_wise"]["R-CC"]["quirk_single_image_heatmaps"]
    stored = exam.facing["R-CC"][:, ::-1]
    image = right_pointing(stored, "CC", "NO")
    grid = draw_grid(image.shape, random.Random(0))
    assert len(grid) == golden["n_patches"]
    (first,) = patch_scores(nets("patch"), image, grid, 1)
    close(first, golden["first_patch_probs"], PROBABILITY)


@pytest.mark.campaign
def test_heatmaps_of_the_exam_and_scores_with_them(exam, nets, network, goldens):
    rng, heatmaps = random.Random(0), {}
    with np.load(goldens / "four_view" / "heatmaps.npz") as arrays:
        expected = arrays["exam_probs"]
    for view in VIEWS:
        image = exam.facing[view]
        grid = draw_grid(image.shape, rng)
        scores = patch_scores(nets("patch"), image, grid)
        first, end = network["full_exam_heatmaps"][f"0_{view}"]["patch_rows"]
        close(scores, expected[first:end], PROBABILITY)
        heatmaps[view] = tuple(heatmap_of(image.shape, grid, scores[:, i]) for i in (BENIGN, MALIGNANT))
    golden = network["end_to_end_view_wise"]["real_heatmaps_augmented_10_epochs"]
    predicted = view_wise_run(nets("view-heatmaps"), exam, heatmaps, epochs=10)
    close(predicted, golden["predictions"][0], PROBABILITY)


def view_wise_run(net, exam, heatmaps, epochs):
    images = {view: [exam.image(view)] for view in VIEWS}
    scores = []
    for epoch in plan_exam(images, np.random.RandomState(0), epochs=epochs):
        inputs = {
            view: as_batch(
                network_input(
                    exam.facing[view], plan.unpadded, plan.size, heatmaps[view] if heatmaps else None
                )
            )
            for view, (_, plan) in epoch.items()
        }
        scores.append(ViewWise.exam_scores(net(inputs))[0].double().numpy())
    return np.mean(scores, axis=0)


@pytest.mark.campaign
def test_augmented_view_wise_runs(exam, nets, network):
    golden = network["end_to_end_view_wise"]
    for key, epochs in (("image_only_augmented_1_epoch", 1), ("image_only_augmented_10_epochs", 10)):
        predicted = view_wise_run(nets("view-image"), exam, None, epochs)
        close(predicted, golden[key]["predictions"][0], PROBABILITY)
    heatmaps = {view: exam.heatmaps(view) for view in VIEWS}
    predicted = view_wise_run(nets("view-heatmaps"), exam, heatmaps, 2)
    close(predicted, golden["synthetic_heatmaps_augmented_2_epochs"]["predictions"][0], PROBABILITY)


@pytest.mark.campaign
@pytest.mark.parametrize("view", VIEWS)
def test_augmented_image_wise_runs(view, exam, nets, network):
    golden = network["end_to_end_image_wise"][view]

    def run(tag, epochs, heatmaps=None):
        plans = plan_image(exam.image(view), view, epochs=epochs)
        inputs = (
            as_batch(network_input(exam.facing[view], plan.unpadded, plan.size, heatmaps)) for plan in plans
        )
        return np.stack([nets(tag).single(view, x)[0, :, 1].exp().double().numpy() for x in inputs])

    scores = run("image-image", 10)
    close(scores.mean(axis=0), list(golden["image_only_10_epochs"].values()), PROBABILITY)
    if "quirk_batch_size_5_of_10_epochs_image_only" in golden:
        averaged = scores[epochs_averaged(10, 5)].mean(axis=0)
        close(averaged, list(golden["quirk_batch_size_5_of_10_epochs_image_only"].values()), PROBABILITY)
    with_heatmaps = run("image-heatmaps", 2, exam.heatmaps(view)).mean(axis=0)
    close(with_heatmaps, list(golden["synthetic_heatmaps_2_epochs"].values()), PROBABILITY)


def test_side_wise_scores_have_the_order_of_the_targets() -> None:
    shares = {"left": [[0.8, 0.2], [0.7, 0.3]], "right": [[0.6, 0.4], [0.1, 0.9]]}
    outputs = {side: torch.tensor([rows]).log() for side, rows in shares.items()}
    scores = dict(zip(TARGETS, SideWise.exam_scores(outputs)[0].tolist(), strict=True))
    assert scores == pytest.approx({
        "left_benign": 0.2, "right_benign": 0.4, "left_malignant": 0.3, "right_malignant": 0.9,
    })  # fmt: skip

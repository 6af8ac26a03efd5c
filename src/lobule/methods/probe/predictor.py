"""The predictor of a probe: one map with a cell per token, its findings, and a slide score."""

from __future__ import annotations

from lobule.bundles import Bundle, plain_weights
from lobule.encoders.load import restore_encoder
from lobule.errors import BundleError
from lobule.findings import components
from lobule.grid import cells_by_centre
from lobule.methods.probe.config import Config
from lobule.methods.probe.heads import load_head
from lobule.methods.probe.model import ProbeModel, TokenMap, make_token_net
from lobule.results.result import Result
from lobule.scanning.contract import OpenCase, Steps, fill_map
from lobule.scanning.map_findings import by_score
from lobule.scanning.open_case import slide_images
from lobule.stitch import State, smooth_map

ENCODER = "encoder.safetensors"


class ProbePredictor:
    """Scores every token of the tissue of a slide."""

    images = staticmethod(slide_images)

    def __init__(self, config: Config, model: ProbeModel) -> None:
        self.config, self.model = config, model

    def steps(self, case: OpenCase) -> Steps[Result]:
        config, model = self.config, self.model
        lattice = case.images["slide"].lattice(mpp=config.mpp, upsample=case.options.upsample)
        grid = model.grid(lattice, case.engine.cells)
        tissue = case.tissue()
        required = cells_by_centre(grid, tissue.mask, tissue.l0_step)
        classes = config.classes[1:]
        reader = yield from fill_map(
            TokenMap(), "tokens", grid, classes, required, params=model.needed(grid, required)
        )
        scores, states = reader.read()
        layer = smooth_map(scores[0], states == State.SCORED, config.smooth)
        info = reader.info
        findings = components(
            layer, info.l0_stride, mpp=info.l0_mpp, threshold=config.threshold, label=classes[0]
        )
        return Result({classes[0]: float(layer.max(initial=0.0))}, by_score(findings))


def load(bundle: Bundle, *, trust: bool = False) -> ProbePredictor:
    """Load a bundle as a predictor. Its files contain only tensors, so `trust` has no effect."""
    encoding = bundle.config.get("encoding")
    if not isinstance(encoding, dict) or ENCODER not in bundle.files:
        raise BundleError(
            "the bundle does not contain its encoder",
            subject=bundle.path,
            expected=f"the file {ENCODER}, and its name and hash under `encoding`",
            remedy="Copy the bundle again from where it came",
        )
    settings = {name: value for name, value in bundle.config.items() if name != "encoding"}
    config = Config.from_dict(settings)
    encoder = restore_encoder(str(encoding["name"]), plain_weights(bundle.file(ENCODER)))
    net = make_token_net(config, encoder)
    if (digest := encoder.hash_at(net.window)) != encoding["hash"]:
        raise BundleError(
            "the encoder in the bundle is not the one that the head was fitted to",
            subject=bundle.path,
            expected=str(encoding["hash"]),
            actual=digest,
        )
    head = load_head(config, bundle.weights(), net.width)
    return ProbePredictor(config, ProbeModel(config, encoder, head))

"""What a stream's settings ask of its model, and whether a bundle still fits them."""

from __future__ import annotations

from models.autoencoder import ModelSpec
from pipeline.config import Stream
from pipeline.errors import BundleError


def model_spec(stream: Stream) -> ModelSpec:
    """What a stream's settings ask of its model.

    Raises:
        ConfigError: the network's shape does not make sense.
    """
    model = stream.model
    return ModelSpec(
        features=stream.feature_names,
        window_rows=model.window,
        kind=model.kind,
        hidden=model.hidden,
        code=model.code,
        seed=stream.training.seed,
        steps=stream.training.steps,
        transforms=stream.transforms,
    )


def check_fits(spec: ModelSpec, bundle_id: str, name: str, stream: Stream) -> None:
    """Refuse a bundle that was trained for other rows than the stream has now.

    Raises:
        BundleError: names both and the remedy.
    """
    for what, has, wants in (
        ("features", ", ".join(spec.features), ", ".join(stream.feature_names)),
        ("windows of", f"{spec.window_rows} rows", f"{stream.model.window} rows"),
        ("rows made as", repr(spec.transforms), repr(stream.transforms)),
    ):
        if has != wants:
            raise BundleError(
                f"bundle {bundle_id[:12]} has {what} {has}; stream {name!r} is set to {wants}: train it "
                f"again (`offbeat train {name}`) or set the stream back"
            )

"""What a data set will offer to a model (size, channels, classes, longest sequence), without preparing the data.

What the configuration does not tell, a person's own images and installed packages, is opened.
"""

from __future__ import annotations

from typing import Any

from attn_cli.config import schema
from attn_cli.data import house_numbers, pair_labels
from attn_cli.data.batches import open_data
from attn_cli.data.layouts import LONGEST, mean_length
from attn_cli.data.splits import DataInfo

DIGITS, BIRDS = 10, 200  # classes; CIFAR-10 has ten, too


def shape_of(config: Any) -> DataInfo:
    """The description of a data section's images, with no image in any split unless they had to be opened.

    Raises Refused as `open_data` does.
    """
    channels, classes, background, length = 1, DIGITS, 0, 0
    frames = config.frames if isinstance(config, schema.Tracks) else 0
    if isinstance(config, schema.Pairs):
        classes, length = len(pair_labels.class_names(config.label)), pair_labels.length(config.label)
    elif isinstance(config, schema.HouseNumbers):
        channels, background, length = 1 if config.grey else 3, house_numbers.BACKGROUND, LONGEST
    elif isinstance(config, schema.Sequences):
        length = LONGEST
    elif isinstance(config, schema.Svhn):
        channels, background, length = 1 if config.grey else 3, config.background, LONGEST
    elif isinstance(config, schema.Cifar10):
        channels, background = 3, config.background
    elif isinstance(config, schema.Cub200) and config.path is None:
        channels, classes, background = 3, BIRDS, config.background
    elif not isinstance(config, schema.Scenes | schema.Tracks | schema.Scaled):
        return open_data(config).info
    names = tuple(str(k) for k in range(classes))
    size = (channels, config.height, config.width)
    return DataInfo(config.name, *size, classes, names, background, 0, 0, 0, length, frames)


def usual_length(config: Any) -> float | None:
    """How many digits a sequence of this data set has on average: two of a pair, else from the statistics of SVHN's
    annotations (for svhn, too, whose images need not be at hand); None where that is not known or there is one label an
    image.
    """
    if isinstance(config, schema.Pairs):
        return pair_labels.length(config.label) or None
    return mean_length() if isinstance(config, (schema.Sequences, schema.Svhn)) else None

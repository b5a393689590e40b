"""The data sections of a configuration: every key with its type and bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from attn_cli.config.fields import REQUIRED, bounded, choice
from attn_cli.config.model_sections import WIDEST


@dataclass(frozen=True)
class Retina:
    """The retina recommended for a data set; conf/glimpses and conf/scales take it over unless told otherwise."""

    size: int = bounded(8, 2, 256)  # g, pixels a side of one patch
    scales: int = bounded(1, 1, 8)  # k, patches, each twice as wide as the one before


@dataclass(frozen=True)
class Scenes:
    """Digits, placed in a canvas and cluttered on the fly, from MNIST or from the embedded rendered digits."""

    name: str = "mnist"
    source: str = choice("mnist", "mnist", "digits")
    height: int = bounded(28, 28, WIDEST)
    width: int = bounded(28, 28, WIDEST)
    pieces: int = bounded(0, 0, 256)  # of clutter, cut from other digits
    piece_size: int = bounded(8, 1, 28)  # pixels a side of a piece
    translate: bool = False  # the digit anywhere in the canvas; else in its centre
    warp: float = bounded(0.0, 0, 0.5)  # how far training digits are turned, sheared and resized; see data/warps.py
    root: str | None = None  # data folder; None: $ATTN_DATA or the user cache folder
    download: bool = True
    train_limit: int | None = bounded(None, 1, 10_000_000)  # use only the first n training images
    retina: Retina = field(default_factory=Retina)


@dataclass(frozen=True)
class Tracks:
    """Videos of a digit that moves through clutter; see attn_cli/data/tracks.py."""

    translate: ClassVar[bool] = True
    warp: ClassVar[float] = 0.0
    name: str = "moving_mnist_track"
    source: str = choice("mnist", "mnist", "digits")
    frames: int = bounded(20, 1, 64)  # of a video: each brings a glimpse
    speed: float = bounded(4.0, 0, 1000)  # pixels per frame of the fastest digits, the slowest have half of it
    height: int = bounded(100, 28, WIDEST)
    width: int = bounded(100, 28, WIDEST)
    pieces: int = bounded(8, 0, 256)  # of clutter, cut from other digits
    piece_size: int = bounded(8, 1, 28)  # pixels a side of a piece
    root: str | None = None  # data folder; None: $ATTN_DATA or the user cache folder
    download: bool = True
    train_limit: int | None = bounded(None, 1, 10_000_000)  # use only the first n training digits
    retina: Retina = field(default_factory=lambda: Retina(12, 4))


@dataclass(frozen=True)
class Pairs:
    """Two digits in one canvas, with clutter or without; the label is the pair, the sum or the sequence."""

    name: str = "mnist_pairs"
    source: str = choice("mnist", "mnist", "digits")
    label: str = choice("pair", "pair", "sum", "sequence")
    height: int = bounded(100, 28, WIDEST)
    width: int = bounded(100, 28, WIDEST)
    overlap: float = bounded(0.0, 0, 1)  # largest share of a digit's box that the other's box may cover
    pieces: int = bounded(8, 0, 256)  # of clutter, cut from other digits
    piece_size: int = bounded(8, 1, 28)  # pixels a side of a piece
    warp: float = bounded(0.0, 0, 0.5)  # how far training digits are turned, sheared and resized; see data/warps.py
    root: str | None = None  # data folder; None: $ATTN_DATA or the user cache folder
    download: bool = True
    train_limit: int | None = bounded(None, 1, 10_000_000)  # use only the first n training digits
    retina: Retina = field(default_factory=lambda: Retina(12, 2))


@dataclass(frozen=True)
class Scaled:
    """One digit of a random size anywhere in a black image."""

    name: str = "mnist_scales"
    source: str = choice("mnist", "mnist", "digits")
    height: int = bounded(100, 1, WIDEST)
    width: int = bounded(100, 1, WIDEST)
    smallest: int = bounded(14, 1, 512)  # pixels a side of the digit
    largest: int = bounded(56, 1, 512)
    root: str | None = None  # data folder; None: $ATTN_DATA or the user cache folder
    download: bool = True
    train_limit: int | None = bounded(None, 1, 10_000_000)  # use only the first n training digits
    retina: Retina = field(default_factory=lambda: Retina(12, 3))


@dataclass(frozen=True)
class Sequences:
    """One to five digits, laid out like house numbers; the label is the sequence from left to right."""

    name: str = "mnist_sequence"
    source: str = choice("mnist", "mnist", "digits")
    height: int = bounded(54, 54, WIDEST)
    width: int = bounded(54, 54, WIDEST)
    root: str | None = None  # data folder; None: $ATTN_DATA or the user cache folder
    download: bool = True
    train_limit: int | None = bounded(None, 1, 10_000_000)  # use only the first n training digits
    retina: Retina = field(default_factory=lambda: Retina(12, 2))


@dataclass(frozen=True)
class Svhn:
    """SVHN house numbers, cut out around their digits, up to five digits read from left to right."""

    name: str = "svhn"
    source: str = choice("svhn", "svhn", "svhn_110", "svhn_128")  # how much is cut out, see data/sources/svhn.py
    height: int = bounded(54, 8, 128)  # smaller than what is cut out: random crops train, the centre is evaluated
    width: int = bounded(54, 8, 128)
    grey: bool = True
    validation: int = bounded(5000, 1, 1_000_000)  # images drawn from train and extra; at most a tenth of them
    background: int = bounded(0, 0, 255)  # what the retina reads outside the image
    root: str | None = None  # data folder; None: $ATTN_DATA or the user cache folder
    download: bool = True
    train_limit: int | None = bounded(None, 1, 10_000_000)  # use only n training images, drawn
    retina: Retina = field(default_factory=lambda: Retina(12, 2))


@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10: photos of ten kinds of things."""

    source: ClassVar[str] = "cifar10"
    height: ClassVar[int] = 32
    width: ClassVar[int] = 32
    name: str = "cifar10"
    background: int = bounded(0, 0, 255)  # what the retina reads outside the image
    root: str | None = None  # data folder; None: $ATTN_DATA or the user cache folder
    download: bool = True
    shift: int = bounded(0, 0, 1024)  # pixels that a training image is moved at most, in x and in y
    mirror: bool = False  # training images are mirrored with probability 1/2
    train_limit: int | None = bounded(None, 1, 10_000_000)  # use only the first n training images
    retina: Retina = field(default_factory=lambda: Retina(8, 2))


@dataclass(frozen=True)
class Cub200:
    """Caltech-UCSD Birds 200-2011: photos of 200 kinds of birds, resized to 256×256."""

    source: ClassVar[str] = "cub200"
    name: str = "cub200"
    path: str | None = None  # a folder in the layout of the archive, or an .h5 of `attn attend`; None: the archive
    height: int = bounded(224, 8, 256)  # random parts train, mirrored or not; the centre is evaluated
    width: int = bounded(224, 8, 256)
    background: int = bounded(0, 0, 255)  # what the retina reads outside the image
    root: str | None = None  # data folder; None: $ATTN_DATA or the user cache folder
    download: bool = True
    train_limit: int | None = bounded(None, 1, 10_000_000)  # use only n training images, drawn
    retina: Retina = field(default_factory=lambda: Retina(32, 3))


@dataclass(frozen=True)
class HouseNumbers(Sequences):
    """Such numbers in one colour on painted house fronts: the stand-in for SVHN that needs no download."""

    name: str = "house_numbers"
    source: str = choice("digits", "mnist", "digits")
    grey: bool = True  # else RGB


@dataclass(frozen=True)
class Catch:
    """The game of Mnih et al. 2014, section 4.2; see attn_cli/games/catch.py."""

    frames: ClassVar[int] = 23  # of a game: each brings a glimpse
    name: str = "catch"
    games: int = bounded(20_000, 1, 10_000_000)  # fresh ones in an epoch
    retina: Retina = field(default_factory=lambda: Retina(6, 3))


@dataclass(frozen=True)
class Folder:
    """A person's own images: class folders (data=folder)."""

    name: str = "folder"
    path: str = REQUIRED
    grey: bool | None = None  # None: as the files are
    height: int | None = bounded(None, 1, WIDEST)  # None: as the files are
    width: int | None = bounded(None, 1, WIDEST)
    validation_share: float = bounded(0.1, 0, 0.9, above=True)  # used when the data names no validation split
    test_share: float = bounded(0.1, 0, 0.9, above=True)
    background: int = bounded(0, 0, 255)  # what the retina reads outside the image
    shift: int = bounded(0, 0, 1024)  # pixels that a training image is moved at most, in x and in y
    mirror: bool = False  # training images are mirrored with probability 1/2
    seed: int = bounded(0, 0, 2**32 - 1)  # of the split
    retina: Retina = field(default_factory=lambda: Retina(12, 3))


@dataclass(frozen=True)
class Arrays(Folder):
    """A person's own images: an .npz or .h5 of images and labels (data=arrays)."""

    name: str = "arrays"


AnyData = (
    Scenes | Tracks | Pairs | Scaled | Sequences | Svhn | Cifar10 | Cub200 | Catch | Folder
)  # or the Config of an installed package's data

"""`attn data list | prepare NAME | info NAME`: which data sets there are, in which state, and what is in them."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from attn_cli.commands.entry import conf_folder
from attn_cli.config import registry, schema
from attn_cli.config.arguments import Parser
from attn_cli.config.fields import build
from attn_cli.data import hdf5, prepared
from attn_cli.data.pair_labels import class_names
from attn_cli.errors import Refused, nearest
from attn_cli.files import expanded, kind_of
from attn_cli.pictures.tables import show

OWN = {"folder": "one folder of images per class", "arrays": "an .npz or .h5 of images and labels"}
MANY_CLASSES = 40  # beyond this the histogram is summarised


def main(argv: list[str]) -> int:
    """`argv` is what follows `attn data`. Returns the exit code; raises Refused."""
    arguments = _parser().parse_args(argv)
    root = prepared.data_root(arguments.root)
    if arguments.action == "prepare":
        _prepare(arguments, root)
    elif arguments.action == "info":
        _info(arguments.name, root, arguments.root)
    else:
        _list(root)
    return 0


def _parser() -> Parser:
    parser = Parser("attn data", description="Data sets.", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True, metavar="list | prepare | info")
    for action, about in (
        ("list", "which data sets there are, and in which state"),
        ("prepare", "download and verify a data set, once"),
        ("info", "shapes, counts, classes, digests and place of a data set"),
    ):
        command = actions.add_parser(action, help=about, description=about, allow_abbrev=False)
        if action == "prepare":
            command.add_argument("name", metavar="NAME", help="a name of `attn data list`")
            command.add_argument("--from", dest="from_dir", metavar="DIR", type=Path, help="folder of original files")
            command.add_argument("--rgb", action="store_true", help="in colour (svhn…), as data.grey=false uses it")
            command.add_argument(
                "--skip-faulty", action="store_true", help="leave out images whose annotation is wrong (svhn…)"
            )
        elif action == "info":
            command.add_argument(
                "name", metavar="NAME", help="a name of `attn data list`, or the path of your own data"
            )
        command.add_argument("--root", metavar="DIR", help="data folder (default: $ATTN_DATA or the user cache folder)")
    return parser


def config_of(name: str) -> Any:
    """The data configuration `name` as conf/data has it; raises Refused for an unknown name."""
    if name not in registry.names("data"):
        raise Refused(f"{name} is not a data set.{nearest(name, registry.names('data'))}")
    if name in registry.plugin_names("data") and name not in schema.DATA:
        return dataclasses.replace(registry.config_class("data", name)(), name=name)
    from omegaconf import OmegaConf

    return build(schema.DATA[name], schema.plain(OmegaConf.load(conf_folder() / "data" / f"{name}.yaml")), "data")


def _list(root: Path) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("name", "size", "classes", "state"):
        table.add_column(title, justify="right" if title == "classes" else "left", overflow="fold")
    states: dict[str, str] = {}
    for name in registry.names("data"):
        if name in OWN:
            table.add_row(name, "any", "any", f"yours: {OWN[name]}, data.path=PATH")
        elif schema.DATA.get(name) is schema.Catch:
            table.add_row(name, "24×24", "3", "a game: nothing to prepare")
        elif name in schema.DATA:
            config = config_of(name)
            if config.source not in states:
                states[config.source] = _state(config.source, root)
            table.add_row(name, _size(config), _classes(config), states[config.source])
        else:
            table.add_row(name, "–", "–", "from an installed package")
    show(table)
    print(f"data folder: {root}")


def _size(config: Any) -> str:
    frames = f", {config.frames} frames" if isinstance(config, schema.Tracks) else ""
    return f"{config.height}×{config.width}{frames}"


def _classes(config: Any) -> str:
    if isinstance(config, schema.Pairs):
        return str(len(class_names(config.label)))
    return "200" if isinstance(config, schema.Cub200) else "10"


def _state(source: str, root: Path) -> str:
    try:
        large = (*prepared.SEQUENCES, "cub200")  # hashing gigabytes takes a while
        prepared.read(source, root, verify=source not in large)
    except FileNotFoundError:
        if source == "digits":
            return "embedded, rendered on first use"
        from attn_cli.data.sources import cifar10, cub200, mnist, svhn

        sizes = {"mnist": mnist.DOWNLOAD_BYTES, "cifar10": cifar10.ARCHIVE.size, "cub200": cub200.ARCHIVE.size}
        size = sizes.get(source, svhn.DOWNLOAD_BYTES) / 1e6
        return (
            f"downloads {size:,.1f} MB on first use" if size < 1000 else f"downloads {size / 1e3:.1f} GB on first use"
        )
    except Refused:
        return f"damaged: run `{prepared.rebuild_command(source, root)}`"
    return "prepared"


def _prepare(arguments: argparse.Namespace, root: Path) -> None:
    from attn_cli.data.batches import source_name
    from attn_cli.data.prepare import prepare

    name = arguments.name
    if name in OWN:
        raise Refused(f"data={name} is read as it is and needs no preparation: `attn data info PATH` checks your data.")
    config = config_of(name)
    if isinstance(config, schema.Catch):
        raise Refused(f"data={name} is a game and needs no preparation.")
    if not isinstance(config, schema.PREPARED):
        raise Refused(f"data={name} comes from an installed package and prepares itself when it is used.")
    if isinstance(config, schema.Svhn):
        config = dataclasses.replace(config, grey=not arguments.rgb)
    elif arguments.rgb or arguments.skip_faulty:
        raise Refused(f"--rgb and --skip-faulty are for {', '.join(registry.SVHN)}: leave them out.")
    path = prepare(source_name(config), root, arguments.from_dir, skip_faulty=arguments.skip_faulty)
    print(f"{name} is ready: {path}")


def _info(name: str, root: Path, given_root: str | None) -> None:
    from attn_cli.data.batches import open_data, source_name

    config: Any
    known = name in registry.names("data")
    path = expanded(name)
    there = None if known else kind_of(path)
    if name in OWN:
        raise Refused(f"data={name} is your own data: give its path, `attn data info PATH`.")
    if there == "folder":
        config = schema.Cub200(path=name) if kind_of(path / "images.txt") == "file" else schema.Folder(path=name)
    elif there == "file":
        config = schema.Cub200(path=name) if _has_boxes(path) else schema.Arrays(path=name)
    else:
        config = config_of(name)
    made = known and isinstance(config, schema.PREPARED)
    if made:
        config = dataclasses.replace(config, root=given_root, download=False)
        path = prepared.path_of(source_name(config), root)
    data = open_data(config)
    info = data.info
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_row("name", info.name)
    table.add_row("images", f"{info.channels}×{info.height}×{info.width} (channels × height × width), uint8")
    if info.frames:
        table.add_row("frames", f"{info.frames} in a video")
    table.add_row("background", str(info.background))
    table.add_row("classes", str(info.classes))
    if info.length:
        table.add_row("labels", f"up to {info.length} from left to right")
    if info.game is None:
        table.add_row("file", str(path))
    else:
        games = f"{info.train:,} in an epoch, {info.validation:,} that validate, {info.test:,} that test"
        table.add_row("games", games)
    if made:
        source = prepared.read(source_name(config), root)
        table.add_row("made from", source.origin)
        table.add_row("sha256 of the source", source.content_sha256() + _recorded(source))
    for split in ("validation", "test"):
        table.add_row(f"sha256 of {split}", data.digest(split))  # type: ignore[arg-type]
    show(table)
    if info.game is None:  # what it is played from has no classes
        show(_histogram(data))


def _has_boxes(path: Path) -> bool:
    """Whether it is a file of `attn attend`, which data=cub200 takes."""
    try:
        with hdf5.open_hdf5(path) as file:
            return "train_boxes" in file
    except Exception:  # h5py raises nearly every type for a damaged file, and the reader of arrays names it
        return False


def _recorded(source: prepared.Prepared) -> str:
    """Whether rendered digits are those that the project's results were measured with."""
    if source.name != "digits":
        return ""
    from attn_cli.data.sources import digits

    if source.content_sha256() == digits.RECORDED_SHA256:
        return " (as recorded)"
    return f" (differs from the recorded digits, which were rendered with {digits.RENDERED_WITH})"


def _histogram(data: Any) -> Table:
    """Images per class and split, of sequences objects per class; classes that never occur are named."""
    info = data.info
    labels = {split: data.fixed(split)[1] for split in ("validation", "test")}
    if hasattr(data, "labels"):
        labels = data.labels
    flat = {split: values[(values >= 0) & (values < info.classes)] for split, values in labels.items()}
    counts = {split: np.bincount(values.cpu().numpy(), minlength=info.classes) for split, values in flat.items()}
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("class")
    for split in counts:
        table.add_column(split, justify="right")
    if info.classes <= MANY_CLASSES:
        for k, name in enumerate(info.class_names):
            table.add_row(name, *(f"{count[k]:,}" if count[k] else "none" for count in counts.values()))
    else:
        table.add_row("fewest", *(f"{count.min():,}" for count in counts.values()))
        table.add_row("most", *(f"{count.max():,}" for count in counts.values()))
        table.add_row("classes that never occur", *(f"{(count == 0).sum():,}" for count in counts.values()))
    table.add_row("all", *(f"{count.sum():,}" for count in counts.values()), style="bold")
    if info.length:
        for n in range(info.length + 1):  # by the place of the end
            ends = {split: (values[:, n] == info.classes).sum().item() for split, values in labels.items()}
            if any(ends.values()):
                table.add_row(f"images with {n}", *(f"{end:,}" for end in ends.values()))
        more = {split: (values > info.classes).any(1).sum().item() for split, values in labels.items()}
        table.add_row("images with more", *(f"{count:,}" for count in more.values()))
        table.add_row("images", *(f"{len(values):,}" for values in labels.values()), style="bold")
    return table

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
from attn_cli.config.fields import build
from attn_cli.data import prepared
from attn_cli.errors import Refused, nearest
from attn_cli.pictures.tables import show

OWN = {"folder": "one folder of images per class", "arrays": "an .npz or .h5 of images and labels"}
MANY_CLASSES = 40  # beyond this the histogram is summarised


def main(argv: list[str]) -> int:
    """`argv` is what follows `attn data`. Returns the exit code; raises Refused."""
    arguments = _parser().parse_args(argv)
    root = prepared.data_root(arguments.root)
    if arguments.action == "prepare":
        _prepare(arguments.name, root, arguments.from_dir)
    elif arguments.action == "info":
        _info(arguments.name, root, arguments.root)
    else:
        _list(root)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("attn data", description="Data sets.", allow_abbrev=False)
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
    states = {source: _state(source, root) for source in ("mnist", "digits")}
    for name in registry.names("data"):
        if name in OWN:
            table.add_row(name, "any", "any", f"yours: {OWN[name]}, data.path=PATH")
        elif name in schema.DATA:
            config = config_of(name)
            table.add_row(name, f"{config.height}×{config.width}", _classes(config), states[config.source])
        else:
            table.add_row(name, "–", "–", "from an installed package")
    show(table)
    print(f"data folder: {root}")


def _classes(config: Any) -> str:
    if isinstance(config, schema.Pairs):
        from attn_cli.data.pairs import class_names

        return str(len(class_names(config.label)))
    return "10"


def _state(source: str, root: Path) -> str:
    try:
        prepared.read(source, root)
    except FileNotFoundError:
        from attn_cli.data.sources import mnist

        size = mnist.DOWNLOAD_BYTES / 1e6
        return f"downloads {size:.1f} MB on first use" if source == "mnist" else "embedded, rendered on first use"
    except Refused:
        return f"damaged: run `{prepared.rebuild_command(source, root)}`"
    return "prepared"


def _prepare(name: str, root: Path, from_dir: Path | None) -> None:
    from attn_cli.data.prepare import prepare

    if name in OWN:
        raise Refused(f"data={name} is read as it is and needs no preparation: `attn data info PATH` checks your data.")
    config = config_of(name)
    if not isinstance(config, schema.FROM_DIGITS):
        raise Refused(f"data={name} comes from an installed package and prepares itself when it is used.")
    path = prepare(config.source, root, from_dir)
    print(f"{name} is ready: {path}")


def _info(name: str, root: Path, given_root: str | None) -> None:
    from attn_cli.data.batches import open_data

    config: Any
    path = Path(name).expanduser()
    known = name in registry.names("data")
    if name in OWN:
        raise Refused(f"data={name} is your own data: give its path, `attn data info PATH`.")
    if not known and path.is_dir():
        config = schema.Folder(path=name)
    elif not known and path.is_file():
        config = schema.Arrays(path=name)
    else:
        config = config_of(name)
    if isinstance(config, schema.FROM_DIGITS):
        config = dataclasses.replace(config, root=given_root, download=False)
        path = prepared.path_of(config.source, root)
    data = open_data(config)
    info = data.info
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_row("name", info.name)
    table.add_row("images", f"{info.channels}×{info.height}×{info.width} (channels × height × width), uint8")
    table.add_row("background", str(info.background))
    table.add_row("classes", str(info.classes))
    table.add_row("file", str(path))
    if isinstance(config, schema.FROM_DIGITS):
        source = prepared.read(config.source, root)
        table.add_row("made from", source.origin)
        table.add_row("sha256 of the digits", source.content_sha256() + _recorded(source))
    for split in ("validation", "test"):
        table.add_row(f"sha256 of {split}", data.digest(split))  # type: ignore[arg-type]
    show(table)
    show(_histogram(data))


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
    counts = {}
    for split, values in labels.items():
        shown = values[(values >= 0) & (values < info.classes)]  # of sequences neither the end nor what is behind it
        counts[split] = np.bincount(shown.cpu().numpy(), minlength=info.classes)
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
    for length in range(1, info.length + 1):
        sequences = ((values >= 0).sum(1) == length + 1 for values in labels.values())
        table.add_row(f"length {length}", *(f"{int(found.sum()):,}" for found in sequences))
    return table

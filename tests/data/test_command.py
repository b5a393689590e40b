"""`attn data …` as a person types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attn_cli.commands.data import config_of, main
from attn_cli.config import registry, schema
from attn_cli.data import prepared, writing
from attn_cli.errors import Refused


def attn(*words: str, root: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(prepared.__file__).parents[2]), "ATTN_DATA": str(root)}
    command = [sys.executable, "-m", "attn_cli", "data", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_list_as_a_command(digit_root: Path) -> None:
    done = attn("list", root=digit_root)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.split()}
    for name in registry.names("data"):
        assert name in rows
    assert "100×100" in rows["cluttered_mnist_100"] and "downloads 11.6 MB" in rows["cluttered_mnist_100"]
    assert "prepared" in rows["digits"] and "prepared" in rows["cluttered_digits"]
    assert [rows[name].split()[4] for name in ("mnist", "mnist_pairs", "digits_sum")] == ["10", "55", "19"]
    assert "yours" in rows["folder"] and str(digit_root) in done.stdout


def test_list_does_not_wait_for_torch(digit_root: Path) -> None:
    code = f"import sys; from attn_cli.commands.data import main; main(['list', '--root', {str(digit_root)!r}])"
    end = "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code + end], stdout=subprocess.DEVNULL).returncode == 0


def test_refused_as_a_command(tmp_path: Path) -> None:
    done = attn("info", "cluttered_mist", root=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("attn data: cluttered_mist is not a data set. Did you mean 'cluttered_mnist'")
    assert done.stderr.count("\n") == 1


def test_list_says_what_is_damaged(digit_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (digit_root / "digits.h5").write_bytes(b"junk")
    assert main(["list", "--root", str(digit_root)]) == 0
    assert f"damaged: run `attn data prepare digits --root {digit_root}`" in capsys.readouterr().out


def test_prepare_and_info(digit_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "cluttered_digits", "--root", str(digit_root)]) == 0
    assert f"cluttered_digits is ready: {digit_root / 'digits.h5'}" in capsys.readouterr().out
    assert main(["info", "cluttered_digits", "--root", str(digit_root)]) == 0
    out = capsys.readouterr().out
    data = registry.load("data", "cluttered_digits")(
        schema.Scenes("c", "digits", 60, 60, 4, translate=True, root=str(digit_root))
    )
    for shown in ("1×60×60", str(digit_root / "digits.h5"), data.digest("validation"), data.digest("test")):
        assert shown in out
    rows = [line.replace("|", " ").split() for line in out.splitlines()]
    assert ["3", "6", "2", "3"] in rows and ["7", "none", "none", "3"] in rows and ["all", "60", "20", "30"] in rows
    assert "differs from the recorded digits" in out  # these are noise


def test_info_of_what_is_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="attn data prepare mnist --root"):
        main(["info", "translated_mnist", "--root", str(tmp_path)])


def test_info_of_a_game(capsys: pytest.CaptureFixture[str]) -> None:
    """Its classes are actions, which nobody has chosen yet, and it lies in no file."""
    assert main(["info", "catch"]) == 0
    out = capsys.readouterr().out
    assert "20,000 in an epoch, 2,000 that validate, 10,000 that test" in out and "sha256 of test" in out
    assert "left" not in out and "file" not in out


def test_info_of_your_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (7, 5), (i, k, 0)).save(tmp_path / "pets" / name / f"{i}.png")
    assert main(["info", str(tmp_path / "pets")]) == 0
    out = capsys.readouterr().out
    assert (
        "3×5×7" in out
        and "cat" in out
        and ["all", "16", "2", "2"] in [line.replace("|", " ").split() for line in out.splitlines()]
    )
    np.savez(tmp_path / "many.npz", images=np.zeros((200, 4, 4), np.uint8), labels=np.arange(200) % 100)
    assert main(["info", str(tmp_path / "many.npz")]) == 0
    assert "classes that never occur" in capsys.readouterr().out


def test_info_of_attended_regions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As data=cub200 takes them: parts of 224×224, and what validates drawn alike."""
    images = {split: np.zeros((20, 3, 256, 256), np.uint8) for split in ("train", "test")}
    labels, boxes = ({split: np.zeros((20, *n), np.uint8) for split in images} for n in ((), (4,)))
    path = tmp_path / "regions.h5"
    writing.write(prepared.Prepared("cub200", "regions", ("a",), images, labels, boxes), path)
    assert main(["info", str(path)]) == 0
    rows = [line.replace("|", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["name", "cub200"] in rows and ["all", "18", "2", "20"] in rows
    assert any("3×224×224" in row for row in rows)


def test_names_that_cannot_be_prepared(tmp_path: Path) -> None:
    for words, message in (
        (["prepare", "folder"], "attn data info PATH"),
        (["info", "arrays"], "attn data info PATH"),
        (["prepare", "mnits"], "Did you mean 'mnist'"),
        (["prepare", "digits", "--from", str(tmp_path)], "leave out --from"),
        (
            ["prepare", "mnist", "--from", str(tmp_path / "nowhere")],
            "nowhere/train-images-idx3-ubyte.gz cannot be read",
        ),
    ):
        with pytest.raises(Refused, match=message):
            main([*words, "--root", str(tmp_path)])


def test_conf_has_what_the_papers_have() -> None:
    """The sizes and pieces of the paper's tasks, as conf/data gives them."""
    for name, expected in (
        ("mnist", ("mnist", 28, 28, 0, False)),
        ("translated_mnist", ("mnist", 60, 60, 0, True)),
        ("cluttered_mnist", ("mnist", 60, 60, 4, True)),
        ("cluttered_mnist_100", ("mnist", 100, 100, 8, True)),
        ("cluttered_digits", ("digits", 60, 60, 4, True)),
    ):
        config = config_of(name)
        found = (config.source, config.height, config.width, config.pieces, config.translate)
        assert found == expected and config.piece_size == 8

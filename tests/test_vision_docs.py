"""docs/vision-data.md is true: its recipe and commands run, and each form becomes the row that it shows."""

import io
import json
import re
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from worldloom.cli import main
from worldloom.inspection import decoder
from worldloom.packing.dataset import open_dataset
from worldloom.packing.inspect import row_detail
from worldloom.packing.render import render_row
from worldloom.packing.row import row_examples
from worldloom.tokenizers.codebook import Codebook
from worldloom.tokenizers.train import train

Image = pytest.importorskip("PIL.Image", reason="SKIPPED FOR LACK OF PILLOW: pip install 'worldloom[vision]'")
av = pytest.importorskip("av", reason="SKIPPED FOR LACK OF PYAV: pip install 'worldloom[vision]'")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "vision-data.md"
GREYS = np.array([0, 85, 170, 255], np.uint8)  # code c is a grey patch, black to white
CAPTION = "A white square."
CORPUS = ["A white square. A black square grows white, and white grows the square.", "<vision> </vision>"] * 20


def picture(greys: list[int]) -> np.ndarray:
    """Draw four patches of 16 pixels."""
    patches = GREYS[np.array(greys).reshape(2, 2)]
    return np.repeat(patches.repeat(16, 0).repeat(16, 1)[..., None], 3, axis=2)


def png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture([3, 0, 0, 1])).save(out, "PNG")
    return out.getvalue()


def write_tar(folder: Path) -> None:
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for name, data in {"000000000.png": png(), "000000000.txt": CAPTION.encode()}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_table(folder: Path) -> None:
    (folder / "pictures").mkdir()
    (folder / "pictures" / "square.png").write_bytes(png())
    (folder / "captions.csv").write_text(f'file,caption\npictures/square.png,"{CAPTION}"\n')


def write_folder(folder: Path) -> None:
    (folder / "square.png").write_bytes(png())
    (folder / "square.txt").write_text(CAPTION)


def write_clips(folder: Path) -> None:
    with av.open(str(folder / "square.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"qp": "0"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv444p"
        for greys in ([0, 0, 0, 0], [3, 0, 0, 0], [3, 3, 3, 3]):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(greys))))
        container.mux(stream.encode())
    (folder / "square.txt").write_text(CAPTION)


FORMS = {
    "tar": (write_tar, "image-text", "{}/*.tar"),
    "table": (write_table, "image-text", "{}/captions.csv"),
    "folder": (write_folder, "image-text", "{}"),
    "clip": (write_clips, "video-text", "{}"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("models")
    train(CORPUS, str(folder / "text.model"), 300)
    patches = np.broadcast_to(GREYS[:, None, None, None], (4, 16, 16, 3)).copy()
    Codebook(patches, 32).save(str(folder / "codebook.npz"))
    vision = {"kind": "codebook", "path": str(folder / "codebook.npz")}
    return {"text": str(folder / "text.model"), "vision": vision}


def shown(form: str, models: dict[str, object], tmp_path: Path) -> str:
    """Build one record of a form, and draw its row as the page does."""
    write, kind, path = FORMS[form]
    (tmp_path / form).mkdir()
    write(tmp_path / form)
    source = {"name": form, "kind": kind, "path": path.format(form)}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({"vocabulary": models, "sources": [source], "pack": {"length": 64, "weights": "lwm"}})
    )
    assert main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 0
    dataset = open_dataset(str(tmp_path / "out" / "packed-64"))
    (example,) = row_examples(dataset.row(0))
    out = io.StringIO()
    console = Console(file=out, width=110, highlight=False)
    console.print(render_row(row_detail(dataset, 0, decode=decoder(dataset, None))))
    text = re.sub(r"\b[0-9a-f]{32}\b", "…", out.getvalue())  # digests
    ids = "ids     " + " ".join(map(str, example.tokens.tolist()))
    flags = "trained " + " ".join(
        str(int(t)).rjust(len(str(i))) for i, t in zip(example.tokens, example.trained, strict=True)
    )
    return "\n".join(line.rstrip() for line in [*text.splitlines(), "", ids, flags])


@pytest.mark.parametrize("form", FORMS)
def test_each_form_becomes_the_row_that_the_page_shows(form, models, tmp_path) -> None:
    assert shown(form, models, tmp_path) in PAGE.read_text()


def test_your_own_folder_in_ten_lines(models, tmp_path, monkeypatch) -> None:
    section = PAGE.read_text().partition("## Your own folder in ten lines")[2].partition("\n## ")[0]
    (recipe,) = re.findall(r"```yaml\n(.*?)```", section, re.S)
    (commands,) = re.findall(r"```sh\n(.*?)```", section, re.S)
    assert recipe.count("\n") + commands.count("\n") <= 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-pictures").mkdir()
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (300, 280, 3), np.uint8)).save(f"my-pictures/{i}.png")
        (tmp_path / "my-pictures" / f"{i}.txt").write_text(f"{CAPTION} {i}")
    (tmp_path / "my.model").write_bytes(Path(str(models["text"])).read_bytes())
    (tmp_path / "my.yaml").write_text(recipe)
    for line in commands.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "worldloom" and main(arguments) == 0
    made = open_dataset("data/packed-1024").manifest
    assert made["ledger"]["kept"] == 3 and Path("row.html").read_text().count("data:image") == 3
    assert json.loads((tmp_path / "data" / "packed-1024" / "manifest.json").read_text())["weights"] == "lwm"

"""Reading WebDataset tars beside webdataset's own reader: the same keys, bytes and captions."""

import io
import json
import random
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from webdataset.tariterators import group_by_keys, tar_file_expander
from worldloom.pipelines.reading.samples import read_samples

from benchmarks.measure import Measure, speedup

SAMPLES = 5_000
PICTURE = 20_000  # bytes, about a picture of 256 pixels as img2dataset writes it


def measures() -> Iterator[Measure]:
    """Yield how many times faster than webdataset a tar of img2dataset's is split into samples."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "00000.tar"
        write_tar(path)
        if ours(path) != peer(path):
            raise AssertionError("the samples differ from webdataset's")
        yield Measure("tar-samples", speedup(lambda: ours(path), lambda: peer(path)), 1.5)


def write_tar(path: Path) -> None:
    rng = random.Random(0)
    with tarfile.open(path, "w") as archive:
        for number in range(SAMPLES):
            about = {"url": f"https://example.org/{number}.jpg", "caption": f"picture {number}", "status": "success"}
            members = {"jpg": rng.randbytes(PICTURE), "txt": f"picture {number}".encode()}
            for suffix, data in {**members, "json": json.dumps(about).encode()}.items():
                info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def ours(path: Path) -> list[tuple[str, int, bytes, int]]:
    with path.open("rb") as stream:
        found = []
        for sample in read_samples(stream, "picture", 2**25):
            data = sample.media.data if sample.media else b""
            found.append((sample.key, len(data), sample.texts["caption"], len(sample.texts["sidecar"])))
        return found


def peer(path: Path) -> list[tuple[str, int, bytes, int]]:
    with path.open("rb") as stream:
        files = tar_file_expander([{"url": str(path), "stream": stream}])
        return [(s["__key__"], len(s["jpg"]), s["txt"], len(s["json"])) for s in group_by_keys(files)]

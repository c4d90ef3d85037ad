"""The package that a worker elsewhere gets: the source distribution of the worldloom that is installed here.

Whether it is a checkout (whose root is the package) or a folder of site-packages, the same files come out: those of the
root and of the rooms. What they need is pinned to the versions that are installed here, since rows depend on them.
"""

import configparser
import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from .. import __version__
from ..errors import UserError

NAME = "worldloom"
ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("tokenizers", "packing", "pipelines", "training", "recipes")
CODE, DATA = "*.py", ("*.yaml", "py.typed")
PYTHON = ">=3.11,<3.13"
BUILD_SYSTEM = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Digest the package's Python files, names and bytes: the same in a checkout, the package and site-packages.

    Returns 32 hexadecimal characters.
    """
    seen = hashlib.blake2b(digest_size=16)
    for name in files(CODE):
        content = (ROOT / name).read_bytes()
        seen.update(f"{name}\0{len(content)}\0".encode() + content)
    return seen.hexdigest()


def package(folder: Path, extras: Sequence[str]) -> Path:
    """Write the source distribution of the installed worldloom, the same bytes for the same files and versions.

    Args:
      folder: it is written there, under the name that pip expects.
      extras: whose requirements it has beside those of every installation.

    Raises:
      UserError: if what it requires is unknown or not installed here.
    """
    top = f"{NAME}-{__version__}"
    made = {"PKG-INFO": information(), "pyproject.toml": BUILD_SYSTEM, "setup.cfg": setup(requirements(extras))}
    members = {name: text.encode() for name, text in made.items()}
    members |= {f"{NAME}/{name}": (ROOT / name).read_bytes() for name in files(CODE, *DATA)}
    path = folder / f"{top}.tar.gz"
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, content in members.items():
            member = tarfile.TarInfo(f"{top}/{name}")  # of nobody, and of no time
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def files(*patterns: str) -> list[str]:
    """List the package's files by name, relative to its root and sorted."""
    return sorted({path.relative_to(ROOT).as_posix() for path in _found(patterns) if not path.name.startswith(".")})


def _found(patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from ROOT.glob(pattern)
        for room in ROOMS:
            yield from (ROOT / room).rglob(pattern)


def requirements(extras: Sequence[str]) -> list[str]:
    """List what an installation with these extras requires, each pinned to the version installed here."""
    return sorted({_pinned(requirement) for requirement in declared() if _applies(requirement, extras)})


def declared() -> list[Requirement]:
    """List all requirements, as a checkout says itself: what was noted when it was installed may be old.

    Raises:
      UserError: if worldloom is neither a checkout nor installed.
    """
    config = configparser.ConfigParser()
    if config.read(ROOT / "setup.cfg"):
        found = config["options"]["install_requires"].strip().splitlines()
        for extra, lines in config["options.extras_require"].items():
            found += [f'{line}; extra == "{extra}"' for line in lines.strip().splitlines()]
    else:
        try:
            found = requires(NAME) or []
        except PackageNotFoundError:
            raise UserError(f"{NAME} is not installed here, so what it requires is unknown: pip install it") from None
    return [Requirement(line) for line in found]


def _applies(requirement: Requirement, extras: Sequence[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def _pinned(requirement: Requirement) -> str:
    named = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    try:
        installed = version(requirement.name).partition("+")[0]  # a build's own mark, such as +cpu, is in no registry
    except PackageNotFoundError:
        raise UserError(f"{requirement.name} is missing here, and workers need it: pip install it") from None
    return f"{requirement.name}{named}=={installed}"


def information() -> str:
    return f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {__version__}\n"


def setup(required: Iterable[str]) -> str:
    """Write the package's setup.cfg."""
    folders = {Path(name).parent for name in files(CODE, *DATA)}
    packages = sorted(".".join((NAME, *folder.parts)) for folder in folders)
    config = configparser.ConfigParser()
    config["metadata"] = {"name": NAME, "version": __version__}
    config["options"] = {
        "packages": _lines(packages),
        "python_requires": PYTHON,
        "install_requires": _lines(required),
    }
    config["options.package_data"] = {"*": _lines(DATA)}
    text = io.StringIO()
    config.write(text)
    return text.getvalue()


def _lines(values: Iterable[str]) -> str:
    return "\n" + "\n".join(values)

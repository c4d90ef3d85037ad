"""The package for workers: the same files, versions and code wherever it is installed, and nothing else."""

import configparser
import io
import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
from worldloom import __version__
from worldloom.errors import UserError
from worldloom.pipelines import staged

ROOT = Path(staged.__file__).parents[1]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy this checkout's package, so that nobody edits it meanwhile."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in [*staged.files("*.py", "*.yaml", "py.typed"), "setup.cfg"]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    return copy


@pytest.fixture(scope="module")
def packed(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staged, "ROOT", checkout)
        return staged.package(tmp_path_factory.mktemp("packed"), ["build"])


@pytest.fixture(scope="module")
def installed(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the package as Beam's workers do, offline, and into a folder of its own."""
    folder = tmp_path_factory.mktemp("site-packages")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", folder, packed], check=True, timeout=120)
    return folder


def run(code: str, *path: Path) -> str:
    """Run code where nothing but Python's own library and these folders can be imported."""
    start = f"import sys; sys.path[:0] = {[str(p) for p in path]!r}\n"
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", start + code], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def members(packed: Path) -> dict[str, bytes]:
    with tarfile.open(packed) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


def test_it_holds_the_files_that_setup_cfg_names_and_no_others(packed: Path, checkout: Path) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    data = config["options.package_data"]
    expected = set()
    for package in config["options"]["packages"].split():
        folder = ROOT.joinpath(*package.split(".")[1:])
        for pattern in ("*.py", *data.get(package, "").split()):
            expected |= {f"worldloom/{path.relative_to(ROOT).as_posix()}" for path in folder.glob(pattern)}
    expected |= {"PKG-INFO", "pyproject.toml", "setup.cfg"}
    found = members(packed)
    assert set(found) == {f"worldloom-{__version__}/{name}" for name in expected}
    assert found[f"worldloom-{__version__}/worldloom/recipe.py"] == (checkout / "recipe.py").read_bytes()


def test_pip_installs_it_and_it_works_from_there(installed: Path) -> None:
    there = "import worldloom as w; from pathlib import Path; f = Path(w.__file__).parent; "
    place, number, recipe = run(
        f"{there}print(f, w.__version__, (f / 'recipes/lwm/text-1m.yaml').exists())", installed
    ).split()
    assert (Path(place), number, recipe) == (installed / "worldloom", __version__, "True")
    assert (installed / "worldloom" / "py.typed").exists()
    assert not list((installed / "worldloom").rglob("test_*"))


def test_the_installed_one_has_the_same_code_and_packs_itself_to_the_same_bytes(
    installed: Path, checkout: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged, "ROOT", checkout)
    libraries = [Path(p) for p in sys.path if p.endswith("site-packages")]
    code = (
        "from pathlib import Path; from worldloom.pipelines import staged; print(staged.code_digest());"
        f"staged.package(Path({str(tmp_path)!r}), ['build'])"
    )
    [information] = installed.glob("*.dist-info")  # as of a plain installation, whose requirements are not pinned
    (information / "METADATA").write_text(METADATA + "".join(f"Requires-Dist: {line}\n" for line in declared()))
    assert run(code, installed, *libraries) == staged.code_digest.__wrapped__()
    assert (tmp_path / packed.name).read_bytes() == packed.read_bytes()


METADATA = f"Metadata-Version: 2.1\nName: worldloom\nVersion: {__version__}\n"


def declared() -> list[str]:
    """Read setup.cfg's requirements, those of extras with their mark."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    marked = [f'{line}; extra == "{name}"' for name in extras for line in extras[name].split("\n") if line]
    return [*config["options"]["install_requires"].split(), *marked]


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


OWN = {
    "__init__.py": "",
    "py.typed": "",
    "tokenizers/text.py": "b",
    "recipes/x/y.yaml": "c: 1",
    "packing/__init__.py": "",
}
OTHERS = {
    ".git/config": "x",
    ".venv/lib/z.py": "x",
    "tests/test_a.py": "x",
    "data/books.txt": "x",
    "benchmarks/b.py": "x",
    "packing/__pycache__/a.pyc": "x",
    "packing/.#lock.py": "x",
    "recipes/x/weights.npz": "x",
    "build/lib/worldloom/a.py": "x",
}


def test_what_lies_about_in_a_checkout_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "ROOT", tree(tmp_path / "checkout", OWN | OTHERS))
    found = [name.split("/", 2)[2] for name in members(staged.package(tmp_path, [])) if name.count("/") > 1]
    assert sorted(found) == sorted(OWN)


def test_the_same_files_make_the_same_bytes_whenever_and_by_whomever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for number, name in enumerate(("one", "two")):
        root = tree(tmp_path / name, OWN if number else dict(reversed(OWN.items())))
        for file in OWN:
            os.utime(root / file, (number, number))
            (root / file).chmod(0o600 if number else 0o755)
        monkeypatch.setattr(staged, "ROOT", root)
        monkeypatch.setattr("time.time", lambda number=number: 1e9 * number)
        made.append(staged.package(root, ["build"]).read_bytes())
    assert made[0] == made[1]
    with tarfile.open(fileobj=io.BytesIO(made[0])) as archive:
        assert {(m.mtime, m.uid, m.uname, m.mode) for m in archive} == {(0, 0, "", 0o644)}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"packing/__init__.py": " "}, False),
        ({"packing/new.py": ""}, False),
        ({"tokenizers/text.py": "", "tokenizers/b.py": "b"}, False),
        ({"recipes/x/y.yaml": "c: 2"}, True),
        (OTHERS, True),
    ],
)
def test_the_digest_is_that_of_the_code(
    change: dict[str, str], same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(name: str, files: dict[str, str]) -> str:
        monkeypatch.setattr(staged, "ROOT", tree(tmp_path / name, files))
        return staged.code_digest.__wrapped__()

    assert (digest("before", OWN) == digest("after", OWN | change)) is same


def required(extras: list[str]) -> dict[str, str]:
    return dict(line.split("==") for line in staged.requirements(extras))


def test_requirements_are_those_of_the_extras_pinned_to_what_is_installed() -> None:
    base, build = required([]), required(["build"])
    vision, stores = required(["build", "vision"]), required(["build", "gcs", "s3"])
    assert base["numpy"] == version("numpy") and "apache-beam" not in base
    assert build["apache-beam"] == version("apache-beam")
    assert not {"torch", "jax", "gcsfs", "pytest"} & set(build)
    assert set(vision) - set(build) >= {"torch", "diffusers", "av"}
    assert set(stores) - set(build) == {"gcsfs", "s3fs"}
    assert len(base) == sum("extra" not in line for line in declared())


def test_a_builds_own_mark_is_not_asked_of_a_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "version", lambda name: "2.9.0+cpu")
    assert set(required([]).values()) == {"2.9.0"}


def test_what_workers_need_and_is_missing_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "ROOT", tmp_path)  # no checkout
    monkeypatch.setattr(staged, "requires", lambda name: ["no-such-thing>=1"])
    with pytest.raises(UserError, match="no-such-thing is missing here, and workers need it: pip install it"):
        staged.requirements([])


def test_what_an_installation_that_is_none_requires_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "ROOT", tmp_path)
    monkeypatch.setattr(staged, "NAME", "no-such-worldloom")
    with pytest.raises(UserError, match="is not installed here"):
        staged.requirements([])

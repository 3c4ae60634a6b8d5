"""A source distribution has all that `make run` and `make test` need; a wheel has the packages, compiled or not."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kongtrace", "sim")
PARTS = ("LICENSE", "MANIFEST.in", "Makefile", "README.md", "pyproject.toml", "requirements.lock", "setup.py")
FOLDERS = (*PACKAGES, "docs", "scenarios", "tests")
MADE_AGAIN = shutil.ignore_patterns("__pycache__", "runs", ".*")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the repository, to build in."""
    tree = tmp_path_factory.mktemp("tree")
    for name in PARTS:
        shutil.copy(ROOT / name, tree)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=MADE_AGAIN)
    return tree


def files(tree: Path, *names: str) -> set[str]:
    """The files of a tree, or of some of its folders."""
    folders = [tree / name for name in names] or [tree]
    return {str(path.relative_to(tree)) for folder in folders for path in folder.rglob("*") if path.is_file()}


def build(tree: Path, what: str, out: Path, **variables: str) -> Path:
    """Have the build backend build a distribution, with variables of its environment; where it is."""
    command = f"from setuptools.build_meta import build_{what} as build; build({str(out)!r})"
    environment = os.environ | variables
    subprocess.run(
        [sys.executable, "-c", command], cwd=tree, env=environment, check=True, capture_output=True, timeout=600
    )
    (built,) = out.iterdir()
    return built


def test_the_source_distribution_is_the_repository(tree, tmp_path):
    """Nothing is missing that the README tells to use, and nothing has got in but what setuptools adds."""
    expected = files(tree)
    with tarfile.open(build(tree, "sdist", tmp_path)) as archive:
        found = {member.name.partition("/")[2] for member in archive if member.isfile()}
    added = {name for name in found - expected if not name.startswith("kongsim.egg-info/")}
    assert added == {"PKG-INFO", "setup.cfg"}
    assert expected <= found


def test_the_wheel_has_the_packages_alone(tree, tmp_path):
    """Each of their files, the licence and the metadata: that is all, where a C compiler fails."""
    expected = files(tree, *PACKAGES)
    with zipfile.ZipFile(build(tree, "wheel", tmp_path, CC="false")) as archive:
        found = set(archive.namelist())
    metadata = {name for name in found if name.startswith("kongsim-")}
    assert found - metadata == expected
    assert {name.partition("/")[2] for name in metadata} == {
        *("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"),
    }

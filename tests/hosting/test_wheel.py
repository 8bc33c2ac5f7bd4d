"""The wheel: its files, and the app started from it away from the clone."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from app.deploy import space

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]  # as pip does
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    (path,) = folder.glob("sinkgate-*.whl")
    return path


def test_it_holds_the_package_with_the_app_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"sinkgate"}
    for folder, target in (("sinkgate", "sinkgate"), ("app", "sinkgate/app")):
        files = [path for path in (ROOT / folder).rglob("*") if path.suffix in space.SUFFIXES]
        wanted = {f"{target}/{path.relative_to(ROOT / folder).as_posix()}" for path in files}
        assert wanted <= {*names}, wanted - {*names}


def test_the_app_starts_from_it(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)  # as pip installs it
    assert space.start_problems(tmp_path, ["-m", "sinkgate", "app", "--model", "demo-small"]) == []

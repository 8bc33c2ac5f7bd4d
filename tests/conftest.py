import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may reach for the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and tiny models gain nothing from threads

import pytest
import torch
from hypothesis import HealthCheck, settings
from tiny import tiny_llava

import sinkgate as sg

# a busy machine is no failure
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


#: Tests that CI runs in its second step: folders, or files of the others, below tests/.
EXTENDED = ("attacks", "browser", "docs", "hosting", "load", "notebooks")
MAIN_PATH = ("browser/test_page.py",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(root).as_posix()
        if place.startswith(EXTENDED) and place not in MAIN_PATH:
            item.add_marker("extended")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    os.environ["SINKGATE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)  # tiny models: threads cost more than they bring


@pytest.fixture(scope="session")
def demo() -> sg.VLM:
    return sg.load("demo")


@pytest.fixture(scope="session", params=["clip", "siglip"])
def tiny(request) -> sg.VLM:
    return sg.load(tiny_llava(request.param))


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The documentation, built once, warnings as errors."""
    folder, root = tmp_path_factory.mktemp("site"), Path(__file__).parents[1]
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", "docs/mkdocs.yml", "-d", str(folder)]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder

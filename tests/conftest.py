import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may reach for the network

import pytest
import torch
from tiny import tiny_llava

import sinkgate as sg


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

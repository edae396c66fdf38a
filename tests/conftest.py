"""What several test files need: real images, put where a cache may be written beside them, and an object store."""

import dataclasses
import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from relvit import data

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# The models here are so small that a second thread costs more than it brings.
torch.set_num_threads(1)


def pytest_configure(config):
    # Imports make a million objects that stay: collections that visit them take a fifth of the time of all tests.
    gc.set_threshold(50_000)


def pytest_collection_finish(session):
    gc.freeze()


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """scikit-learn's digits at 16 x 16: 1,438 training and 359 test images."""
    return data.prepare("digits", tmp_path_factory.mktemp("data"), 16)


@pytest.fixture(scope="session")
def small(digits):
    """80 training images, of which 8 are held out for validation, and 40 test images."""
    return dataclasses.replace(digits, train=digits.train.part(np.arange(80)), test=digits.test.part(np.arange(40)))


@pytest.fixture(scope="session")
def cifar10_part_root(tmp_path_factory):
    """A data root whose cifar10 holds the first 20 training and 5 test images of each class, as class folders."""
    source = SHARED_DATA / "cifar10"
    if not source.is_dir():
        pytest.skip(f"needs the real CIFAR-10 images under {source}")
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 20), ("test", 5)):
        for folder in sorted((source / split).iterdir()):
            target = root / "cifar10" / split / folder.name
            target.mkdir(parents=True)
            for image in sorted(folder.iterdir())[:count]:
                (target / image.name).symlink_to(image)
    return root


@pytest.fixture(scope="session")
def bucket():
    """The URL of an empty bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket="sweeps")
    yield f"s3://sweeps?region=us-east-1&scheme=http&endpoint_override={host}:{port}"
    server.stop()
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})

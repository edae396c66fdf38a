"""A sweep whose account and checkpoints are in an object store (moto's, on loopback), which goes away for a while."""

import json
import time

import pytest
from helpers import entries
from helpers.entries import steps, tracked

from relvit.files import location

pytestmark = pytest.mark.end_to_end

OUTAGE = 12.0  # seconds; pyarrow itself tries again for six


def test_a_sweep_on_an_object_store_outlives_an_outage(tmp_path, bucket):
    from moto.server import ThreadedMotoServer

    # A door of its own to the bucket, which can be shut.
    door = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    door.start()
    host, port = door.get_host_and_port()
    place = bucket.partition("?")[0]
    storage = location(f"{place}/outage?region=us-east-1&scheme=http&endpoint_override={host}:{port}")
    seen = location(f"{place}/outage?{bucket.partition('?')[2]}")
    small = ("--set", "train_images=300", "--set", "pretrain_epochs=4", "--set", "epochs=4")
    with (tmp_path / "log").open("w") as log:
        arguments = ("--tasks", "none,sprel", "--storage", str(storage), *small)
        driver = entries.start("sweeps/ablation.py", tmp_path, *arguments, output=log)
    while driver.poll() is None and not any(True for _ in seen.glob("cells/*/0*-*.pt")):
        time.sleep(0.1)
    door.stop()
    time.sleep(OUTAGE)
    door = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    door.start()
    try:
        status = driver.wait()
    finally:
        door.stop()
    output = (tmp_path / "log").read_text()
    assert status == 0, output
    assert "could not write its checkpoint and is started again" in output
    states = [json.loads(path.read_text())["state"] for path in seen.glob("cells/*/state.json")]
    assert states == ["finished", "finished"]
    runs = tracked(tmp_path)
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    for run in runs:
        assert steps(tmp_path, run, "epoch") == list(range(1, 9))
    for path in seen.glob("cells/*/*.pt"):
        assert path.name.startswith("final-")

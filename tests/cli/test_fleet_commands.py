"""The commands of a fleet, as they are typed: on the host, on a device, and on the host again."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from pathlib import Path
from urllib import request

import click
import numpy as np
import pytest

from edgepeft.cli.app import app
from edgepeft_runtime.train.update import read_update
from tests.cli.conftest import Command
from tests.support.processes import CALL, start


@pytest.fixture
def host(edgepeft: Command, bundle: Path, tmp_path: Path) -> Path:
    """A workspace with a registered device and a first round at ``remote``."""
    workspace = tmp_path / "host"
    assert edgepeft("keys", "new", "birds", "--workspace", workspace).code == 0
    assert edgepeft("keys", "add", "pi-1", "--workspace", workspace, "--out", tmp_path / "pi-1.json").code == 0
    assert edgepeft("publish", bundle, tmp_path / "remote", "--workspace", workspace, "--steps", 5).code == 0
    return workspace


def test_a_fleet_from_its_key_to_a_rollback(
    edgepeft: Command, host: Path, bundle: Path, data: Path, tmp_path: Path
) -> None:
    """Join, train within the limits, deliver, pull, see it in the status, roll back. Each step can be repeated."""
    remote, device, update = tmp_path / "remote", tmp_path / "device", tmp_path / "update.safetensors"
    joined = edgepeft("join", remote, "--bundle", bundle, "--device", device, "--identity", tmp_path / "pi-1.json")
    assert joined.out.startswith("switched to round 1 of birds")
    assert edgepeft("join", remote, "--bundle", bundle, "--device", device, "--probe", data).out.startswith(
        "stays with"
    )
    train = ["train", bundle, "--data", data, "--device", device, "--update", update, "--epochs", 9]
    trained = edgepeft(*train)
    assert (trained.code, "5 steps" in trained.out, "round 1 of birds" in trained.err) == (0, True, True)
    assert read_update(update).steps == 5
    assert (device / "runs" / "r000001").is_dir()
    assert edgepeft("deliver", update, remote, "--device", device).out.startswith(
        "delivered: update 1 of pi-1, round 1"
    )
    assert edgepeft("deliver", update, remote, "--device", device).out.startswith("was there already")
    pulled = edgepeft("pull", remote, "--workspace", host)
    assert pulled.out.splitlines()[-1] == "1 accepted, 0 already there, 0 waiting, 0 refused"
    assert edgepeft("pull", remote, "--workspace", host).out == "0 accepted, 1 already there, 0 waiting, 0 refused\n"
    assert "round 1: 1 updates of 1 devices" in edgepeft("status", "--workspace", host).out
    assert edgepeft("publish", bundle, remote, "--workspace", host, "--adapter", _adapter(bundle, tmp_path)).code == 0
    again = edgepeft("publish", bundle, tmp_path / "stick", "--workspace", host, "--again")
    assert again.out == f"round 2 of birds again\nsent to {tmp_path / 'stick'}\n"
    assert (tmp_path / "stick" / "latest.json").read_bytes() == (remote / "latest.json").read_bytes()
    repeated = edgepeft("publish", bundle, remote, "--workspace", host, "--adapter", _adapter(bundle, tmp_path))
    assert (repeated.code, repeated.out) == (0, f"sent to {remote}\n") and "--another makes one more" in repeated.err
    assert (
        "round 3 of birds with the adapter of round 1"
        in edgepeft("rollback", remote, "--to", 1, "--workspace", host).out
    )
    assert "adapter of round 1 already" in edgepeft("rollback", remote, "--to", 1, "--workspace", host).err
    assert edgepeft("join", remote, "--bundle", bundle, "--device", device).out.startswith("switched to round 3")
    found = json.loads(edgepeft("status", "--workspace", host, "--json").out)
    assert [(number["round"], number["restores"]) for number in found["rounds"]] == [(1, None), (2, None), (3, 1)]


def test_a_round_is_closed_and_the_next_one_starts_from_it(
    edgepeft: Command, host: Path, bundle: Path, data: Path, tmp_path: Path
) -> None:
    """Two devices learn, their mean is the next round's adapter; before enough have delivered, the round stays open."""
    remote, mean = tmp_path / "remote", tmp_path / "mean.safetensors"
    edgepeft("keys", "add", "pi-2", "--workspace", host, "--out", tmp_path / "pi-2.json")
    edgepeft("publish", bundle, remote, "--workspace", host, "--min-devices", 2, "--max-norm", 100)
    aggregate = [
        "aggregate",
        "--workspace",
        host,
        "--bundle",
        bundle,
        "--out",
        mean,
        "--data",
        data,
        "--acceptance-check",
    ]
    for name in ("pi-1", "pi-2"):
        early = edgepeft(*aggregate)
        assert (early.code, "too-few-devices" in early.err) == (1, True)
        device, update = tmp_path / name, tmp_path / f"{name}.safetensors"
        edgepeft("join", remote, "--bundle", bundle, "--device", device, "--identity", tmp_path / f"{name}.json")
        seed = name[-1]
        edgepeft("train", bundle, "--data", data, "--device", device, "--update", update, "--epochs", 1, "--seed", seed)
        assert edgepeft("deliver", update, remote, "--device", device).code == 0
        edgepeft("pull", remote, "--workspace", host)
    done = edgepeft(*aggregate)
    assert (done.code, "round 2: 2 devices" in done.err, "2 updates, 0 duplicates, 0 refused" in done.out) == (
        0,
        True,
        True,
    )
    learned = [read_update(tmp_path / f"pi-{number}.safetensors").parameters for number in (1, 2)]
    for name, array in read_update(mean).parameters.items():
        assert np.allclose(array, (learned[0][name] + learned[1][name]) / 2, atol=1e-6), name
    assert edgepeft("publish", bundle, remote, "--workspace", host, "--adapter", mean).code == 0
    assert edgepeft("join", remote, "--bundle", bundle, "--device", tmp_path / "pi-1").out.startswith(
        "switched to round 3"
    )
    assert edgepeft("aggregate", tmp_path, "--workspace", host, "--bundle", bundle, "--out", mean).code == 2


def _adapter(bundle: Path, folder: Path) -> Path:
    """An adapter with other values."""
    from edgepeft_runtime.files.tensorfile import read_tensors, write_tensors

    tensors = read_tensors(bundle / "adapter.safetensors").tensors
    write_tensors(folder / "adapter", {name: array + array.dtype.type(0.5) for name, array in tensors.items()})
    return folder / "adapter"


def test_only_a_failing_adapter_is_given_up(
    edgepeft: Command, host: Path, bundle: Path, data: Path, tmp_path: Path
) -> None:
    """Wrong data, a wrong path, or a run that is done already are no reason to fall back to the round before."""
    remote, device, update = tmp_path / "remote", tmp_path / "device", tmp_path / "update.safetensors"
    join = ["join", remote, "--bundle", bundle, "--device", device]
    edgepeft(*join, "--identity", tmp_path / "pi-1.json")
    edgepeft("publish", bundle, remote, "--workspace", host)
    edgepeft(*join)
    np.savez(tmp_path / "wrong.npz", x=np.zeros((4, 4), np.float32), labels=np.full(4, 99))
    for path in (tmp_path / "wrong.npz", tmp_path / "none.npz", data):
        for _ in range(3):
            outcome = edgepeft("train", bundle, "--data", path, "--device", device, "--update", update)
            assert (outcome.code == 0) == (path == data), outcome
    assert read_update(update).steps == 24
    assert edgepeft(*join).out.startswith("stays with round 2")
    assert edgepeft("train", bundle, "--data", data, "--device", device, "--update", update).code == 0
    assert "round 2 of birds" in edgepeft("train", bundle, "--data", data, "--device", device, "--update", update).err


def test_what_is_refused_is_reported_with_its_code(
    edgepeft: Command, host: Path, bundle: Path, data: Path, tmp_path: Path
) -> None:
    """A revoked device's update goes to quarantine, and returns when the device is restored."""
    remote, device, update = tmp_path / "remote", tmp_path / "device", tmp_path / "update.safetensors"
    edgepeft("join", remote, "--bundle", bundle, "--device", device, "--identity", tmp_path / "pi-1.json")
    edgepeft("train", bundle, "--data", data, "--device", device, "--update", update)
    edgepeft("deliver", update, remote, "--device", device)
    assert edgepeft("keys", "revoke", "pi-1", "--workspace", host).code == 0
    refused = edgepeft("pull", remote, "--workspace", host)
    assert "(revoked-device)" in refused.err and "quarantine" in refused.err
    assert "refused 1 (revoked-device)" in edgepeft("status", "--workspace", host).out
    assert edgepeft("keys", "restore", "pi-1", "--workspace", host).code == 0
    assert edgepeft("pull", remote, "--workspace", host).out.splitlines()[-1].startswith("1 accepted")


def test_mistakes_end_in_messages(edgepeft: Command, host: Path, bundle: Path, data: Path, tmp_path: Path) -> None:
    """A wrong call is 2, everything else 1, and none a traceback."""
    nowhere = tmp_path / "nowhere"
    for arguments, expected in (
        (["keys", "new", "again", "--workspace", host], "key-exists"),
        (["keys", "new", "A b", "--workspace", nowhere], "bad-name"),
        (["keys", "add", "pi-1", "--workspace", host, "--out", tmp_path / "x"], "device-exists"),
        (["keys", "add", "pi-2", "--workspace", host, "--out", nowhere / "x"], "cannot-write-file"),
        (["keys", "revoke", "nobody", "--workspace", host], "unknown-device"),
        (["publish", bundle, "--workspace", nowhere], "no-key"),
        (["rollback", "--to", 9, "--workspace", host], "no-such-round"),
        (["status", "--workspace", nowhere], "no-key"),
        (["serve", "--workspace", nowhere], "no-key"),
        (["serve", "--workspace", host, "--certificate", data, "--private-key", data], "bad-certificate"),
        (["pull", nowhere, "--workspace", host], "no-such-remote"),
        (["join", nowhere, "--bundle", bundle, "--device", nowhere], "no-identity"),
        (["train", bundle, "--data", data, "--device", nowhere, "--update", tmp_path / "u"], "not-joined"),
    ):
        outcome = edgepeft(*arguments)
        assert (outcome.code, f"error: {expected}" in outcome.err) == (1, True), (arguments, outcome)
    for arguments in (
        ["pull", nowhere],
        ["pull", nowhere, "--workspace", host, "--into", nowhere],
        ["pull", "--into", nowhere],
        ["pull", "--workspace", host, "--bundle", bundle],
        ["serve", "--workspace", host, "--certificate", "x"],
    ):
        assert edgepeft(*arguments).code == 2, arguments
    assert not nowhere.exists()


def test_serve_runs_until_it_is_stopped(
    edgepeft: Command, host: Path, bundle: Path, data: Path, tmp_path: Path
) -> None:
    """As a process of its own: a device joins, trains and delivers over it, the host pulls without naming a remote."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start(CALL, "serve", "--workspace", host, "--port", port)
    address, device, update = f"http://127.0.0.1:{port}", tmp_path / "device", tmp_path / "update.safetensors"
    try:
        _wait(process, address)
        joined = edgepeft("join", address, "--bundle", bundle, "--device", device, "--identity", tmp_path / "pi-1.json")
        assert joined.code == 0, joined.err
        edgepeft("train", bundle, "--data", data, "--device", device, "--update", update)
        assert edgepeft("deliver", update, address, "--device", device).code == 0
        assert edgepeft("pull", "--workspace", host, "--remove").out.splitlines()[-1].startswith("1 accepted")
        assert "error: path-in-use" in edgepeft("serve", "--workspace", host, "--port", 0).err
        other = tmp_path / "other"
        edgepeft("keys", "new", "trees", "--workspace", other)
        assert "error: cannot-listen" in edgepeft("serve", "--workspace", other, "--port", port).err
    finally:
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert f"serving birds on {address}" in err
    assert "Traceback" not in err


def _wait(process: subprocess.Popen[str], address: str) -> None:
    """Until the server answers."""
    for _ in range(200):
        assert process.poll() is None, process.communicate()
        try:
            request.urlopen(address, timeout=1)
        except OSError as failure:  # of which an answer with a status is one too
            if hasattr(failure, "code"):
                return
            time.sleep(0.05)
    raise AssertionError("the server does not answer")


def test_a_device_gets_its_bundle_with_the_round(
    edgepeft: Command, host: Path, bundle: Path, data: Path, tmp_path: Path
) -> None:
    """A device with only an identity joins and trains. Without any bundle, each command's error says what to pass."""
    remote, device, update = tmp_path / "remote", tmp_path / "device", tmp_path / "update.safetensors"
    join = ["join", remote, "--device", device, "--identity", tmp_path / "pi-1.json"]
    train = ["train", "--device", device, "--data", data, "--update", update, "--epochs", 1]
    refused = edgepeft(*join)
    assert refused.code == 1 and "no-bundle" in refused.err and "--with-bundle" in refused.err
    assert edgepeft(*join, "--bundle", bundle).code == 0
    assert "joined with --bundle" in edgepeft(*train).err
    assert edgepeft("publish", bundle, remote, "--workspace", host, "--with-bundle").code == 0
    joined = edgepeft(*join)
    assert joined.code == 0 and "switched to round 2" in joined.out and "bundle: " in joined.out
    assert edgepeft(*train).code == 0 and read_update(update).steps > 0
    assert "Give a BUNDLE" in edgepeft("train", "--data", data, "--update", update, "--state", tmp_path / "s").err


def test_the_pages_commands_and_options_exist() -> None:
    """Every command in docs/FLEET.md is one, with the options shown."""
    page = (Path(__file__).parents[2] / "docs" / "FLEET.md").read_text("utf-8")
    lines = [line.partition("#")[0] for line in re.findall(r"edgepeft (?:[a-z]+ )[^`\n]*--[^`\n]*", page)]
    assert len(lines) >= 14
    for line in lines:
        _, name, *arguments = line.split()
        command = app.get_command(click.Context(app), name)
        if isinstance(command, click.Group):
            command = command.get_command(click.Context(command), arguments[0])
        assert command is not None, line
        known = {option for parameter in command.params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= known, line

"""Real processes: what they measure together, what becomes of the run when one dies, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from natprec.evaluation.verify import MEASUREMENT
from natprec.measurement import Measurement
from natprec.utils import heartbeat as pulse
from tests.conftest import tiny_model
from tests.run_command import left_behind, natprec

BLOCKS = 4
SHAPES = ((128, 128), (64, 128), (64, 128), (128, 128), (512, 128), (512, 128), (128, 512))
"""Of a block's weights: q, k, v and o, and the MLP's."""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
IMPATIENT = (
    "from natprec import cli; from natprec.utils import heartbeat; heartbeat.LIMIT = 6; heartbeat.GRACE = 2; cli.main()"
)
"""The command line with less patience for a process that says nothing."""
NAMES_THREADS = """
import sys
from pathlib import Path
import torch.distributed as dist
from natprec import cli

def tell(when):
    print(when, *(task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")), file=sys.stderr)

close = dist.destroy_process_group
dist.destroy_process_group = lambda: (tell("open:"), close())
try:
    cli.main()
finally:
    tell("closed:")
"""
"""The command line, and the names of its threads before the group is closed and at the end."""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any, text_file: Path) -> list[str]:
    """Four batches that go back, two of them written by the model; two steps of rows in most weights."""
    model = tmp_path_factory.mktemp("workers") / "model"
    tiny_model(num_hidden_layers=BLOCKS, hidden_size=128, intermediate_size=512).save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    return ["measure", "--model", str(model), "--data", str(text_file), "--tokens", "8192", "--sequence-length", "64"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Measurement:
    """The measurement of one process."""
    file = tmp_path_factory.mktemp("alone") / "m"
    done = subprocess.run([sys.executable, "-m", "natprec", *options, "--out", str(file)], env=ENVIRONMENT, check=False)
    assert done.returncode == 0
    return Measurement.load(file)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(size: int, *arguments: object, code: str | None = None) -> list[subprocess.Popen[str]]:
    """So many processes without a launcher: torch.distributed's variables are all there is."""
    port = free_port()
    program = ["-c", code] if code else ["-m", "natprec"]
    return [
        subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            env={
                **ENVIRONMENT,
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            },
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of each."""
    said = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, *both) for process, both in zip(processes, said, strict=True)]


def assert_same(found: Measurement, expected: Measurement) -> None:
    assert list(found.curves) == list(expected.curves)
    for name, curve in expected.curves.items():
        for kind in ("forward", "backward", "energy", "shares", "unquantized", "alignment"):
            ours, theirs = getattr(found.curves[name], kind), getattr(curve, kind)
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-300, err_msg=f"{name} {kind}")
        assert found.curves[name].scaled == curve.scaled
    for eps in (0.1, 0.001):
        assert found.solve(eps=eps).content() == expected.solve(eps=eps).content()


def test_two_processes_measure_what_one_does(tmp_path: Path, options: list[str], alone: Measurement) -> None:
    (code, said, progress), (other, nothing, silence) = finish(start(2, *options, "--out", tmp_path / "m", "--json"))
    assert (code, other) == (0, 0), progress + silence
    assert (nothing, silence) == ("", ""), "process 0 alone talks"
    assert left_behind(tmp_path) == ["m"]
    assert_same(Measurement.load(tmp_path / "m"), alone)
    report = json.loads(said)
    assert report["processes"] == 2
    sent = report["sent_bytes"]
    blocks = [sent[f"model.layers.{index}"] for index in range(BLOCKS)]
    width = 2 if Measurement.load(tmp_path / "m").header.products == "bfloat16" else 4  # of a gradient that travels
    formula = width * 64 * sum(rows * columns for rows, columns in SHAPES) / 2  # half of what goes back changes hands
    formula += width * 32 * sum(min(rows, 128) * columns for rows, columns in SHAPES) / 2  # gradients that judge GPTQ
    formula += 1.5 * 8 * (3 * 128**2 + 512**2)  # moments: half of each matrix for its sum, then half of that sum
    formula += 4 * 64 * 64 * 128 / 2  # the gradient that process 0 saves
    assert all(formula < block < 1.02 * formula for block in blocks), (blocks, formula)


def test_the_groups_threads_end_with_it(tmp_path: Path, options: list[str]) -> None:
    """Those that live into the interpreter's end abort the process now and then, after all is written."""
    for code, _, said in finish(start(2, *options, "--out", tmp_path / "m", "--json", code=NAMES_THREADS)):
        assert code == 0, said
        before, after = said.splitlines()[-2:]
        assert before.startswith("open: "), said
        assert after.startswith("closed: "), said
        assert "gloo" in before, "the group has threads that can be seen"
        assert "gloo" not in after, after


@pytest.mark.parametrize(
    "launcher",
    [
        "torch.distributed.run --nproc-per-node 4 --master-port",
        "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port",
    ],
    ids=["torchrun", "accelerate"],
)
def test_launchers(tmp_path: Path, options: list[str], alone: Measurement, launcher: str) -> None:
    command = [sys.executable, "-m", *launcher.split(), str(free_port()), "-m", "natprec", *options]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "m")], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert_same(Measurement.load(tmp_path / "m"), alone)


def kill_one(processes: list[subprocess.Popen[str]], state: Path, victim: int) -> None:
    """SIGKILL, once something has been measured."""
    deadline = time.monotonic() + 120
    while not state.exists():
        assert time.monotonic() < deadline, "nothing was measured"
        assert all(process.poll() is None for process in processes), "it ended before it was killed"
        time.sleep(0.02)
    processes[victim].send_signal(signal.SIGKILL)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_process_is_named_and_the_rest_resumes(
    tmp_path: Path, options: list[str], alone: Measurement, victim: int
) -> None:
    out = tmp_path / "m"
    processes = start(2, *options, "--out", out, code=IMPATIENT)
    kill_one(processes, tmp_path / "m.partial", victim)
    killed = time.monotonic()
    (code, _, error) = finish(processes)[1 - victim]
    assert time.monotonic() - killed < 30
    assert code == 2, error
    named = f"process 1 (pid {processes[1].pid} on {socket.gethostname()})" if victim else "process 0, or the launcher"
    assert error.splitlines()[-1].startswith(f"natprec: {named}"), error
    assert error.splitlines()[-1].endswith("what was measured is kept: start all processes again, with --resume")
    assert "m.partial" in left_behind(tmp_path)
    (code, _, error), *_ = finish(start(3 if victim else 1, *options, "--out", out, "--resume"))
    assert code == 0, error
    assert left_behind(tmp_path) == ["m"]
    assert_same(Measurement.load(out), alone)


def test_death_is_noticed_within_a_minute() -> None:
    assert pulse.PERIOD * (pulse.LIMIT + pulse.GRACE) < 60


def test_a_launcher_names_the_dead_process(tmp_path: Path, options: list[str]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.Popen(
        [*launcher, "-m", "natprec", *options, "--out", str(tmp_path / "m")], env=ENVIRONMENT,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "m.partial").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    killed = time.monotonic()
    _, said = run.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert run.returncode != 0
    assert f"pid: {children[1]}" in said
    assert "SIGKILL" in said
    assert (tmp_path / "m.partial").exists()


def test_an_error_of_one_process_ends_all(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "m").write_text("something else")
    (code, _, error), (other, _, heard) = finish(start(2, *options, "--out", tmp_path / "m"))
    assert (code, other) == (2, 2)
    assert "exists; choose another or add --overwrite" in error
    assert "process 0" in heard
    assert "has ended" in heard


TWO_HOSTS = """
set -e
mount -t tmpfs tmpfs /run && ip link set lo up
ip netns add far && ip link add near type veth peer name there && ip link set there netns far
ip addr add 10.9.0.1/24 dev near && ip link set near up
ip -n far addr add 10.9.0.2/24 dev there && ip -n far link set there up && ip -n far link set lo up
[ $# -gt 0 ] || exit 0
GLOO_SOCKET_IFNAME=there ip netns exec far "${@/NODE/1}" 2>"$LOGS/far" & far=$!
GLOO_SOCKET_IFNAME=near "${@/NODE/0}" 2>"$LOGS/near" && near=0 || near=$?
wait $far && far=0 || far=$?
echo $near $far
"""
"""Two network namespaces with a cable between them; the command runs in both, with its number for NODE."""


def two_hosts(logs: Path, *command: str) -> subprocess.Popen[str]:
    own = ["unshare", "--map-root-user", "--net", "--mount", "bash", "-c", TWO_HOSTS, "two-hosts"]
    return subprocess.Popen(
        [*own, *command], env={**ENVIRONMENT, "LOGS": str(logs)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    """A folder for logs; skips the test where network namespaces are not permitted."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs unshare and ip")
    tried = two_hosts(tmp_path)
    _, why = tried.communicate(timeout=60)
    if tried.returncode:
        pytest.skip(f"needs network namespaces: {why}")
    logs = tmp_path / "logs"
    logs.mkdir()
    return logs


ON_TWO_HOSTS = ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", "NODE", "--nproc-per-node", "1",
                "--master-addr", "10.9.0.1", "--master-port", "29500", "-m", "natprec"]  # fmt: skip


WHOLE = ["quantize", "--eps", "0.05", "--eval-tokens", "1024"]
"""In place of 'measure'; the measurement is the same one."""


def test_two_hosts(tmp_path: Path, hosts: Path, options: list[str], alone: Measurement) -> None:
    run = two_hosts(hosts, sys.executable, *ON_TWO_HOSTS, *WHOLE, *options[1:], "--out", str(tmp_path / "q"))
    codes, error = run.communicate(timeout=300)
    assert codes.split()[-2:] == ["0", "0"], error + (hosts / "near").read_text() + (hosts / "far").read_text()
    assert (tmp_path / "q" / "verification.json").is_file()
    assert_same(Measurement.load(tmp_path / "q" / MEASUREMENT), alone)


def test_a_host_that_dies(tmp_path: Path, hosts: Path, options: list[str]) -> None:
    """Its processes end as if the power failed; the other host says which one is missing."""
    run = two_hosts(hosts, sys.executable, *ON_TWO_HOSTS, *WHOLE, *options[1:], "--out", str(tmp_path / "q"))
    deadline = time.monotonic() + 120
    while not (tmp_path / "q.partial").exists():
        assert time.monotonic() < deadline, (hosts / "near").read_text() + (hosts / "far").read_text()
        time.sleep(0.02)
    launcher = next(pid for pid in processes_of(run.pid) if variables(pid).get("GLOO_SOCKET_IFNAME") == "there")
    worker = next(pid for pid in processes_of(launcher) if "LOCAL_RANK" in variables(pid))
    for pid in (launcher, worker):
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    codes, _ = run.communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert codes.split()[-2:] == ["1", "137"]
    assert f"natprec: process 1 (pid {worker} on {socket.gethostname()}) has ended" in (hosts / "near").read_text()
    assert (tmp_path / "q.partial").exists()


def processes_of(parent: int) -> list[int]:
    """All below a process, from the top."""
    own = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return own + [below for pid in own for below in processes_of(pid)]


def variables(pid: int) -> dict[str, str]:
    """A process's environment."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


@pytest.mark.parametrize("command", [["inspect", "m"], ["measure", "--model", "m", "--out", "o", "--dry-run"]])
def test_what_one_process_does_is_refused_in_several(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = natprec(*command)
    assert result.code == 2
    assert "was started in 2 processes and works in one" in result.reason


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    result = natprec("measure", "--model", "m", "--out", tmp_path / "m")
    assert result.code == 2
    assert "RANK is '' while WORLD_SIZE is 2; start with torchrun or accelerate launch" in result.reason


def test_one_gpu_for_several_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    result = natprec("measure", "--model", "m", "--device", "cuda:1", "--out", tmp_path / "m")
    assert result.code == 2
    assert "device 'cuda:1' is one GPU, for 2 processes; give --device cuda" in result.reason

"""A stair of known power gives its joules; every fault of a counter gives none, and never a number."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from natprec.energy.counters import CsvCounter, find_counter
from natprec.energy.counters.base import Absent
from natprec.energy.counters.nvml import Nvml, open_nvml
from natprec.energy.counters.powercap import Rapl, open_rapl
from natprec.energy.counters.zeus import open_zeus
from natprec.energy.recorder import EVERY, Clock, Recorder
from natprec.energy.result import report
from natprec.energy.run import Machine, Part, Run, with_fault, with_series
from natprec.energy.series import CounterFault, Series
from natprec.energy.window import Pace, cut_windows, idle_window
from natprec.errors import InputError
from tests.energy.fakes import START, FakeClock, FakeCounter, Steps, fake_nvml, recorded, stair, write_log
from tests.speed import allowed

WATTS = 300.0


def run_of(windows: Any, idle: Any = None) -> Run:
    part = Part("checkpoint", "decode", 1, 8, 8, tuple(windows))
    machine = Machine("fake", 1)
    return Run(
        "m", None, None, "now", {}, machine, "measured", 5.0, 0, (part,), {} if idle is None else {"checkpoint": idle}
    )


def row_of(total: Callable[[float], Any], seconds: float = 5.0, step: float = 0.013) -> dict[str, Any]:
    """The row of work of 4 tokens a step, under a counter."""
    clock = FakeClock()
    recorder = recorded(clock, total)
    recorder.poll()
    idle = idle_window(clock, recorder, Pace(1, seconds))
    windows = cut_windows(Steps(clock, step, 4), clock, recorder, Pace(5, seconds), lambda: None)
    run = run_of(windows, idle)
    try:
        run = with_series(run, recorder.series(), recorder.counter.description, strict=False)
    except CounterFault as error:
        run = with_fault(run, str(error), recorder.counter.description)
    return report(run)["rows"][0]


@pytest.mark.parametrize("every", [0.001, 0.02, 0.1, 0.25, 1.0])
@pytest.mark.parametrize("step", [0.013, 0.7])
def test_a_stair_of_known_power_within_one_percent(every: float, step: float) -> None:
    row = row_of(stair(WATTS, every), step=step)
    expected = WATTS * step / 4
    assert row["joules_per_token"] == pytest.approx(expected, rel=0.01)
    assert row["watts"] == pytest.approx(WATTS, rel=0.01)
    assert row["watts"] / row["tokens_per_second"] == pytest.approx(row["joules_per_token"], rel=1e-12)
    low, high = row["joules_per_token_ci95"]
    assert low <= row["joules_per_token"] <= high
    assert row["joules_per_token_net"] == pytest.approx(0, abs=0.02 * expected), "idle takes as much here"
    assert row["cv"] < 0.03


def test_work_that_ends_between_two_steps_of_the_counter_is_not_mixed_with_idling() -> None:
    """300 W of work, 50 W of idling, a counter of one step a second: the work goes on beyond the last window."""
    clock = FakeClock()
    busy: list[tuple[float, float]] = []

    def total(seconds: float) -> float:
        worked = sum(stop - start for start, stop in busy if stop <= seconds)
        worked += sum(seconds - start for start, stop in busy if start < seconds < stop)
        return 50.0 * seconds + 250.0 * worked

    recorder = recorded(clock, lambda seconds: total(math.floor(seconds * 4 + 1e-9) / 4))
    recorder.poll()

    class Busy(Steps):
        def cycle(self) -> Any:
            for _ in range(self.steps):
                busy.append((clock.time, clock.time + self.seconds))
                clock.advance(self.seconds)
                yield self.tokens

    clock.advance(1.03)
    windows = cut_windows(Busy(clock, 0.013, 4), clock, recorder, Pace(5, 5.0), lambda: None)
    clock.advance(1.0)
    row = report(with_series(run_of(windows), recorder.series(), recorder.counter.description, strict=False))["rows"][0]
    assert row["watts"] == pytest.approx(300.0, rel=0.01)


def drops(at: float, to: float = 0.0) -> Callable[[float], float]:
    return lambda seconds: stair(WATTS, 0.1)(seconds) if seconds < at else to + WATTS * (seconds - at)


FAULTS: dict[str, Callable[[float], Any]] = {
    "stuck": lambda seconds: 1000.0,
    "stuck later": lambda seconds: stair(WATTS, 0.1)(min(seconds, 12.0)),
    "reset": drops(12.0),
    "missing": lambda seconds: None,
    "missing later": lambda seconds: None if seconds > 12 else stair(WATTS, 0.1)(seconds),
    "NaN": lambda seconds: math.nan if seconds > 12 else stair(WATTS, 0.1)(seconds),
    "infinite": lambda seconds: math.inf,
    "negative": lambda seconds: -stair(WATTS, 0.1)(seconds),
    "hardly moves": stair(WATTS, 400.0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_gives_null(name: str) -> None:
    row = row_of(FAULTS[name])
    for figure in ("joules_per_token", "joules_per_token_ci95", "watts", "tokens_per_wh", "kwh_per_million_tokens",
                   "joules_per_token_net", "cv"):  # fmt: skip
        assert row[figure] is None, figure
    assert row["refused"]
    assert row["tokens_per_second"] > 0


def test_a_slow_counter_lengthens_the_window() -> None:
    clock = FakeClock()
    recorder = recorded(clock, stair(WATTS, 3.0))
    windows = cut_windows(Steps(clock, 0.05, 1), clock, recorder, Pace(5, 5.0), lambda: None)
    assert all(window.seconds >= 9 for window in windows)
    row = row_of(stair(WATTS, 3.0))
    assert row["watts"] == pytest.approx(WATTS, rel=0.01)


def test_a_jump_of_the_clock_moves_no_live_window_and_refuses_a_log(tmp_path: Path) -> None:
    clock = FakeClock()

    class Jumping(Steps):
        def cycle(self) -> Any:
            if clock.time > 12:
                clock.jump = 3600.0
            yield from super().cycle()

    recorder = recorded(clock, stair(WATTS, 0.1))
    recorder.poll()
    windows = cut_windows(Jumping(clock, 0.013, 4), clock, recorder, Pace(5, 5.0), lambda: None)
    run = run_of(windows)
    row = report(with_series(run, recorder.series(), recorder.counter.description, strict=False))["rows"][0]
    assert row["watts"] == pytest.approx(WATTS, rel=0.01)
    log = CsvCounter(write_log(tmp_path / "log.csv", START - 1, START + 100, WATTS, 0.5), "wall")
    with pytest.raises(InputError, match="clock jumped by"):
        with_series(run, log.series(), log.description, strict=True)


def test_samples_that_cannot_be_a_total() -> None:
    for samples, words in (
        ([(1.0, 1.0), (1.0, 2.0)], "its clock goes"),
        ([(2.0, 1.0), (1.0, 2.0)], "its clock goes"),
        ([(1.0, 2.0), (2.0, 1.0)], "its total falls"),
        ([(1.0, math.nan), (2.0, 1.0)], "is no energy"),
        ([(1.0, -1.0), (2.0, 1.0)], "is no energy"),
        ([(1.0, 1.0)], "a difference needs 2"),
    ):
        with pytest.raises(CounterFault, match=words):
            Series.of(samples)


def powercap(root: Path, zones: dict[str, tuple[str, int, int]]) -> Path:
    """Zone folder → name, energy_uj, max_energy_range_uj."""
    for folder, (name, energy, most) in zones.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for file, value in (("name", name), ("energy_uj", energy), ("max_energy_range_uj", most)):
            (root / folder / file).write_text(f"{value}\n")
    return root


def opened(root: Path, clock: FakeClock, scope: str | None = None) -> Rapl:
    found = open_rapl(scope, root, lambda: clock.time)
    assert isinstance(found, Rapl), found
    return found


def test_rapl_counts_its_wraps(tmp_path: Path) -> None:
    """Two packages of known power whose totals start again at 70 J and 90 J."""
    clock = FakeClock()
    zones = {"intel-rapl:0": ("package-0", 0, 70_000_000), "intel-rapl:1": ("package-1", 0, 90_000_000),
             "intel-rapl:0:0": ("core", 5, 70_000_000), "intel-rapl:2": ("psys", 7, 10**9)}  # fmt: skip
    found = opened(powercap(tmp_path, zones), clock)
    assert "2 zones" in found.description.name

    def total(seconds: float) -> float:
        for folder, most in (("intel-rapl:0", 70), ("intel-rapl:1", 90)):
            (tmp_path / folder / "energy_uj").write_text(str(round(1e6 * (seconds * WATTS / 2 % most))))
        return found.read()

    row = row_of(lambda seconds: (setattr(clock, "time", seconds), total(seconds))[1], seconds=2.0)
    assert row["watts"] == pytest.approx(WATTS, rel=0.01)
    assert opened(tmp_path, clock, "node").description.scope == "node"


def test_rapl_that_was_reset_or_gives_no_number(tmp_path: Path) -> None:
    clock = FakeClock()
    found = opened(powercap(tmp_path, {"intel-rapl:0": ("package-0", 100_000_000, 262_143_000_000)}), clock)
    clock.advance(0.02)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("0")
    with pytest.raises(CounterFault, match="it was reset"):
        found.read()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("")
    with pytest.raises(CounterFault, match="gives no number"):
        found.read()


def test_rapl_that_is_not_there_or_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = open_rapl(root=tmp_path / "nothing")
    assert isinstance(missing, Absent)
    assert "no powercap folder" in missing.reason
    powercap(tmp_path, {"intel-rapl:0": ("package-0", 1, 10**9)})
    monkeypatch.setattr(Path, "read_text", _refusing(Path.read_text, "energy_uj"))
    refused = open_rapl(root=tmp_path)
    assert isinstance(refused, Absent)
    assert "no permission" in refused.reason
    assert "chmod a+r" in refused.remedy


def _refusing(read: Any, name: str) -> Any:
    def read_text(path: Path, *args: Any, **kwargs: Any) -> str:
        if path.name == name:
            raise PermissionError(13, "Permission denied")
        return read(path, *args, **kwargs)

    return read_text


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return lambda **more: monkeypatch.setitem(__import__("sys").modules, "pynvml", fake_nvml(**more))


def test_nvml_reads_millijoules(nvml: Callable[..., None]) -> None:
    nvml(gpus=2)
    found = open_nvml("cuda:1")
    assert isinstance(found, Nvml)
    assert found.read() == 5.0
    assert found.description.scope == "gpu"
    assert "CPU" in found.description.excluded


def test_gpus_that_are_refused(nvml: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(gpus=2)
    with pytest.raises(InputError, match="2 GPUs are visible and none is named; add --device cuda:0"):
        open_nvml("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert isinstance(open_nvml("cuda"), Nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-123")
    with pytest.raises(InputError, match="divided by MIG"):
        open_nvml("cuda")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    nvml(mig=True)
    with pytest.raises(InputError, match="divided by MIG"):
        open_nvml("cuda")
    nvml(processes=(1, 2))
    with pytest.raises(InputError, match=r"used by 2 other processes \(1, 2\).*--shared"):
        open_nvml("cuda")
    shared = open_nvml("cuda", shared=True)
    assert isinstance(shared, Nvml)
    assert "--shared" in shared.description.notes[0]
    nvml(processes=(1,))
    assert isinstance(open_nvml("cuda", serves=True), Nvml), "the server itself"


def test_a_process_that_comes_later_is_seen(nvml: Callable[..., None]) -> None:
    nvml()
    found = open_nvml("cuda")
    assert isinstance(found, Nvml)
    found._library.nvmlDeviceGetComputeRunningProcesses = fake_nvml(processes=(7,)).nvmlDeviceGetComputeRunningProcesses
    found.check()  # in a container our own process has a number that we do not know
    found._library.nvmlDeviceGetComputeRunningProcesses = fake_nvml(
        processes=(7, 8)
    ).nvmlDeviceGetComputeRunningProcesses
    with pytest.raises(CounterFault, match="2 other processes"):
        found.check()


@pytest.mark.parametrize("energy", ["Not Supported"])
def test_a_gpu_without_a_total(nvml: Callable[..., None], energy: str) -> None:
    nvml(energy=energy)
    found = open_nvml("cuda")
    assert isinstance(found, Absent)
    assert "Volta" in found.reason


def test_a_counter_that_was_asked_for_and_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with pytest.raises(InputError, match=r"counter 'nvml' is not there: nvidia-ml-py \(pynvml\) is not installed"):
        find_counter("nvml", device="cuda")
    monkeypatch.setitem(__import__("sys").modules, "zeus", None)
    with pytest.raises(InputError, match="counter 'zeus' is not there: zeus is not installed"):
        find_counter("zeus", device="cuda")
    with pytest.raises(InputError, match="unknown counter 'nvm'; did you mean 'nvml'"):
        find_counter("nvm")
    with pytest.raises(InputError, match="unknown scope 'plug'"):
        find_counter("none", scope="plug")
    with pytest.raises(InputError, match="counter 'nvml' counts the gpu, not scope 'node'"):
        find_counter("nvml", scope="node")
    found = find_counter("auto", device="cuda")
    assert found.live is None
    assert {each.kind for each in found.absent} == {"nvml", "zeus"}, "the CPU's counter does not stand for a GPU's"


class ZeusGpus:
    """What zeus.device.get_gpus gives, by its older names."""

    def __init__(self, count: int, millijoules: Any = 3000) -> None:
        self.count, self.millijoules = count, millijoules

    def __len__(self) -> int:
        return self.count

    def getTotalEnergyConsumption(self, index: int) -> Any:
        return self.millijoules


def test_zeus_where_the_user_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import ModuleType

    def installed(gpus: Any) -> None:
        module: Any = ModuleType("zeus.device")
        module.get_gpus = lambda: gpus
        monkeypatch.setitem(__import__("sys").modules, "zeus", ModuleType("zeus"))
        monkeypatch.setitem(__import__("sys").modules, "zeus.device", module)

    installed(ZeusGpus(1))
    found = open_zeus("cuda")
    assert not isinstance(found, Absent)
    assert found.read() == 3.0
    installed(ZeusGpus(0))
    assert isinstance(open_zeus("cuda"), Absent), "zeus answers 0 J where there is no GPU"
    installed(ZeusGpus(1, None))
    assert isinstance(open_zeus("cuda"), Absent)
    installed(ZeusGpus(2))
    with pytest.raises(InputError, match="zeus sees 2 GPUs"):
        open_zeus("cuda")


@pytest.mark.parametrize("kind", ["joules", "watts"])
def test_a_log_of_known_power(tmp_path: Path, kind: str) -> None:
    log = CsvCounter(write_log(tmp_path / "log.csv", START, START + 60, WATTS, 0.5, kind), "wall")
    assert log.series().between(START + 10.3, START + 15.4).joules == pytest.approx(5.1 * WATTS, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "its header must be unix_seconds,joules"),
        ("time,joules\n1,2\n", "its header must be"),
        ("unix_seconds,joules\n1,5\n2,4\n3,6\n", "its total falls from 5 J to 4 J"),
        ("unix_seconds,joules\n1,5\n1,6\n", "its clock goes"),
        ("unix_seconds,watts\n2,5\n1,6\n3,1\n", r"its clock goes|clock goes back"),
        ("unix_seconds,joules\n1,-5\n2,6\n", "says -5 joules in line 2"),
        ("unix_seconds,watts\n1,nan\n2,6\n", "says nan watts in line 2"),
        ("unix_seconds,joules\n1,inf\n2,inf\n", "is no energy"),
        ("unix_seconds,joules\n1,a\n", "no two numbers in line 2"),
        ("unix_seconds,joules\n1\n", "no two numbers in line 2"),
        ("unix_seconds,joules\n1,1\n", "a difference needs 2"),
    ],
)
def test_logs_that_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        find_counter(str(tmp_path / "log.csv"))


def test_windows_that_a_log_does_not_give(tmp_path: Path) -> None:
    whole = write_log(tmp_path / "log.csv", START, START + 60, WATTS, 0.5)
    lines = whole.read_text().splitlines()
    series = CsvCounter(whole, "wall").series()
    for start, stop in ((START - 1, START + 5), (START + 50, START + 61)):
        with pytest.raises(CounterFault, match="it covers"):
            series.between(start, stop)
    with pytest.raises(CounterFault, match="it moved 2 times"):
        series.between(START + 10.2, START + 11.2)
    (tmp_path / "gap.csv").write_text("\n".join(lines[:30] + lines[40:]))
    with pytest.raises(CounterFault, match=r"it has a gap of 5\.50 s"):
        CsvCounter(tmp_path / "gap.csv", "wall").series().between(START + 5, START + 30)
    still = [line.partition(",")[0] + ",4350.0" if 30 <= at < 60 else line for at, line in enumerate(lines)]
    (tmp_path / "still.csv").write_text("\n".join(still))
    with pytest.raises(CounterFault, match="it stood still"):
        CsvCounter(tmp_path / "still.csv", "wall").series().between(START + 5, START + 40)
    with pytest.raises(InputError, match="does not exist"):
        find_counter(str(tmp_path / "no.csv"))
    with pytest.raises(InputError, match="start the meter first"):
        CsvCounter(whole, "wall").spacing(START + 600)
    assert CsvCounter(whole, "wall").spacing(START + 60) == pytest.approx(0.5)


def test_a_reading_costs_little() -> None:
    """CPU seconds, the least of a few tries: 33 readings a second must stay below 1 % of it."""
    recorder = Recorder(FakeCounter(FakeClock(), lambda seconds: time.perf_counter()), Clock())
    taken = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(200):
            recorder.poll()
        taken.append((time.process_time() - start) / 200)
    assert recorder.fault is None
    assert min(taken) / EVERY < allowed(0.01)


def test_a_fake_is_a_counter() -> None:
    clock = FakeClock()
    assert FakeCounter(clock, stair(WATTS, 0.1)).read() == 1000.0

"""Panels by several workers: what they write together is what one process writes, whoever dies, byte for byte."""
import json
import pickle
import random
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from exp_helpers import keep, keep_pair
from helpers import tiny_target
from test_panel_cli import FILLED, FOLDER, HOW, end_at, predict, ragged, small_blocks, write

from exp import cluster
from exp.panels import PanelSettings
from exp.predict import Forecaster
from exp.predict.panel import PanelForecaster
from exp.predict.panel_on_ray import IN_FLIGHT
from utils.errors import UserError

SERIES = 20
LISTS = ("forecast.csv", "skipped.csv", "short.csv", "forecast.json")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keep_pair("checkpoints/uni", tiny_target(norm_mode="causal", norm_window=5), data="UnivariateDatasetBenchmark")
    keep("checkpoints/together", tiny_target())
    small_blocks(monkeypatch)
    return tmp_path


def end_after_three(monkeypatch, flags):
    """A run in one process, ended when it has finished three parts."""
    with monkeypatch.context() as patch:
        end_at(patch, 3)
        assert predict(flags) == 130


def written():
    return {name: (FOLDER / name).read_bytes() for name in (*LISTS, *(path.name for path in FOLDER.glob("*.png")))}


class Error(Exception):
    """Of Ray."""


class Died(Error):
    pass


class TaskError(Error):
    def __init__(self, cause):
        self.cause = cause


def sent(what):
    return pickle.loads(pickle.dumps(what))


class OneProcess:
    """Ray in this process: tasks end in a random order, and workers die, before or after they have written.

    dies: share of tasks. most: parts that any worker had at once.
    """

    exceptions = SimpleNamespace(RayError=Error, RayTaskError=TaskError)

    def __init__(self, seed=0, dies=0.0):
        self.random, self.dies, self.deaths, self.most, self.tasks = random.Random(seed), dies, 0, 0, 0
        self.done: list[int] = []  # numbers of parts
        self.awaited, self.cut_off = set(), []  # numbers of tasks
        self.machines = [{"Alive": True, "Resources": {"CPU": 2}}, {"Alive": False, "Resources": {"CPU": 9}}]

    def init(self, **_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray sets one of its own

    def shutdown(self):
        pass

    def nodes(self):
        return self.machines

    def remote(self, kind):
        ray = self

        class Handle:
            def __init__(self, opening):
                self.real, self.dead, self.queue = kind(sent(opening)), False, []
                self.load, self.forecast = (SimpleNamespace(remote=lambda *what, name=name: self.send(name, what))
                                            for name in ("load", "forecast"))

            def send(self, name, what):
                ray.tasks += 1
                self.queue.append(SimpleNamespace(number=ray.tasks, name=name, what=what))
                ray.most = max(ray.most, len(self.queue))
                return ray.tasks
        self.handles = []

        def make(opening):
            self.handles.append(Handle(opening))
            return self.handles[-1]
        return SimpleNamespace(options=lambda **shares: self.given(shares) or SimpleNamespace(remote=make))

    def given(self, shares):
        self.shares = shares

    def put(self, rows):
        self.deaf = signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        return rows

    def kill(self, worker):
        if not worker.dead:
            self.cut_off += [task.number for task in worker.queue
                             if task.name == "forecast" and task.number not in self.awaited]
        worker.dead = True

    def wait(self, tasks, num_returns=1):
        if len(tasks) == num_returns:
            self.awaited |= set(tasks)
            return tasks, []
        first = {handle.queue[0].number for handle in self.handles if handle.queue}  # of a worker, in order
        return [self.random.choice(sorted(first & set(tasks)))], []

    def get(self, number):
        owner, task = next((handle, task) for handle in self.handles for task in handle.queue
                           if task.number == number)
        owner.queue.remove(task)
        early, late = self.random.random() < self.dies / 2, self.random.random() < self.dies / 2
        if owner.dead or early:
            self.deaths += not owner.dead
            owner.dead = True
            raise Died
        try:
            result = sent(getattr(owner.real, task.name)(*sent(task.what)))
        except Exception as error:
            raise TaskError(sent(error)) from None
        if late:
            self.deaths += 1
            owner.dead = True
            raise Died
        self.done += [task.what[0].number] if task.what else []
        return result


def with_ray(monkeypatch, **how):
    ray = OneProcess(**how)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


@pytest.mark.parametrize("how, scattered", [("plain", True), ("paths", False), ("exact", False), ("parareal", False)])
def test_workers_write_what_one_process_writes(place, monkeypatch, how, scattered):
    table = ragged(SERIES)
    write(table.sample(frac=1, random_state=0) if scattered else table, ".csv")
    flags = f"{FILLED} {HOW[how]}"
    assert predict(flags) == 0
    wanted, ray = written(), with_ray(monkeypatch, seed=1)
    assert predict(f"{flags} --workers 2") == 0
    assert written() == wanted and not (FOLDER / "parts").exists()
    assert ray.most == IN_FLIGHT and not ray.deaf and sorted(ray.done) != ray.done and not ray.deaths
    assert ray.shares == {"num_cpus": 1, "num_gpus": 0.0}


@pytest.mark.parametrize("seed", range(2))
def test_what_a_worker_had_that_died_is_done_once(place, monkeypatch, capsys, seed):
    write(ragged(SERIES), ".csv")
    flags = f"{FILLED} {HOW['paths']}"
    assert predict(flags) == 0
    wanted, ray = written(), with_ray(monkeypatch, seed=seed, dies=0.3)
    assert predict(f"{flags} --workers 2 --ray_address auto") == 0
    assert written() == wanted and ray.deaths
    assert len(ray.done) == len(set(ray.done))
    assert capsys.readouterr().out.count("note: a worker has died (Died); parts of it") == ray.deaths


def test_a_run_may_begin_in_one_process_and_end_with_workers_and_the_reverse(place, monkeypatch):
    write(ragged(SERIES), ".csv")
    flags = f"{FILLED} {HOW['exact']} --pictures 5"
    assert predict(flags) == 0
    wanted = written()
    assert sum(name.endswith(".png") for name in wanted) == 5
    with monkeypatch.context() as patch:
        end_at(patch, 2)
        assert predict(flags) == 130
    ray = with_ray(monkeypatch, seed=2)
    with monkeypatch.context() as patch:
        end_at(patch, 6)
        assert predict(f"{flags} --resume --workers 2") == 130
    kept = {int(path.stem) for path in (FOLDER / "parts").glob("0*.json")}
    assert kept == {0, 1, *ray.done} and 6 not in kept and kept != set(range(len(kept)))
    done = []
    real = PanelForecaster.forecast
    monkeypatch.setattr(PanelForecaster, "forecast", lambda self, part, number: done.append(number)
                        or real(self, part, number))
    assert predict(f"{flags} --resume") == 0
    assert written() == wanted and 6 in done and not kept & set(done)


def test_one_process_chooses_k_for_all_workers(place, monkeypatch):
    write(ragged(SERIES), ".csv")
    plans = []
    with_ray(monkeypatch)
    monkeypatch.setattr("exp.predict.panel.PanelForecaster._plan", lambda self, prepared: plans.append(1)
                        or {"batch": 2, "proposals": 3})
    monkeypatch.setattr("exp.predict.panel_parts.Parts.clear", lambda self: None)
    assert predict(f"{FILLED} {HOW['planned']} --workers 2") == 0
    records = [json.loads(path.read_text()) for path in (FOLDER / "parts").glob("0*.json")]
    assert plans == [1] and [record["plan"] for record in records] == [{"batch": 2, "proposals": 3}] * len(records)


@pytest.mark.parametrize("flags", ["", "--missing last"])
def test_what_one_process_refuses_workers_refuse_in_the_same_words(place, monkeypatch, capsys, flags):
    write(ragged(SERIES), ".csv")
    assert predict(flags) == 2
    alone = capsys.readouterr().err
    made, real = [], PanelForecaster.forecast
    monkeypatch.setattr(PanelForecaster, "forecast", lambda self, part, number: made.append(number)
                        or real(self, part, number))
    for seed in range(3):
        ray = with_ray(monkeypatch, seed=seed)
        assert predict(f"{flags} --workers 2") == 2
        assert capsys.readouterr().err == alone
        assert len(ray.done) > 8 and all(number < 8 for number in made)  # after a refusal the others are only examined
    assert not Path("test_results").exists()


def test_workers_that_die_again_and_again_end_the_run_but_not_its_parts(place, monkeypatch, capsys):
    write(ragged(SERIES), ".csv")
    end_after_three(monkeypatch, FILLED)
    capsys.readouterr()
    with_ray(monkeypatch, dies=2.0)
    assert predict(f"{FILLED} --workers 2 --resume") == 2
    said = capsys.readouterr().err
    assert "workers cannot start: they have died 6 times (Died)" in said and said.count("\n") == 1
    assert len(list((FOLDER / "parts").glob("0*.json"))) == 3


def test_an_error_of_a_worker_is_that_of_the_run(place, monkeypatch, capsys):
    write(ragged(SERIES), ".csv")
    ray = with_ray(monkeypatch)
    end_at(monkeypatch, 4, UserError("`clip_min` is wrong"))
    assert predict(f"{FILLED} --workers 2") == 2
    assert ray.awaited and not ray.cut_off  # a worker that still writes would write into the next run's folder
    assert capsys.readouterr().err == "error: --clip_min is wrong\n" and not Path("test_results").exists()


@pytest.mark.parametrize("seen", ["weights", "parts"])
def test_workers_that_see_other_files_are_refused(place, monkeypatch, capsys, seen):
    write(ragged(SERIES), ".csv")
    with_ray(monkeypatch)
    if seen == "weights":
        monkeypatch.setattr("exp.predict.panel_worker.digest", lambda path: "other")
    else:
        monkeypatch.setattr("exp.predict.panel_parts.Parts.begin", lambda self: None)
    assert predict(f"{FILLED} --workers 2") == 2
    assert "a worker sees different files at the same paths" in capsys.readouterr().err
    assert not Path("test_results").exists()


def test_finished_parts_outlive_a_start_with_too_many_workers(place, monkeypatch, capsys):
    write(ragged(SERIES), ".csv")
    end_after_three(monkeypatch, FILLED)
    with_ray(monkeypatch)
    assert predict(f"{FILLED} --workers 3 --resume") == 2
    assert "3 workers need as many cores, but the cluster has 2: give fewer --workers" in capsys.readouterr().err
    assert predict(f"{FILLED} --workers 2 --resume") == 0
    assert "resume: 3 parts of this table are finished" in capsys.readouterr().out


def test_without_ray_nothing_is_lost_and_the_error_says_how_to_get_it(place, monkeypatch, capsys):
    write(ragged(SERIES), ".csv")
    end_after_three(monkeypatch, FILLED)
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    assert predict(f"{FILLED} --workers 2 --resume") == 2
    said = capsys.readouterr().err
    assert "pip install -r requirements-ray.txt" in said and said.count("\n") == 1
    assert len(list((FOLDER / "parts").glob("0*.json"))) == 3


@pytest.mark.parametrize("flags", ["--workers 2", "--ray_address auto"])
def test_workers_are_refused_where_there_is_no_panel(place, monkeypatch, capsys, flags):
    name = flags.split()[0]
    write(ragged(), ".csv")
    assert predict(flags, name="together") == 2
    assert f"{name} is for long tables whose series are forecast each by itself" in capsys.readouterr().err
    assert predict(f"{flags} --backtest 2") == 2
    assert "--backtest runs in one process: leave one of them out" in capsys.readouterr().err
    assert predict(f"{flags} --gpu 0") == 2
    assert "--gpu has no effect on workers, which Ray gives their GPUs" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert predict(flags) == 2
    assert "start run.py without torchrun" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"`{name[2:]}` has no effect on a DataFrame"):
        Forecaster.load("checkpoints/uni", quiet=True).predict(ragged(), 5, panel=PanelSettings(
            **{name[2:]: flags.split()[1] if "auto" in flags else 2}))


@pytest.mark.parametrize("machines, workers, wanted", [
    ([(8, 0)], 2, (2, 4, 0.0)), ([(8, 0)], 3, (3, 2, 0.0)), ([(8, 0), (4, 0)], 3, (3, 4, 0.0)),
    ([(8, 0), (4, 0)], None, (2, 4, 0.0)), ([(0, 0), (6, 0)], None, (1, 6, 0.0)),
    ([(16, 2), (64, 0)], None, (2, 8, 1.0)), ([(16, 2)], 3, (3, 5, 0.5)), ([(16, 1), (16, 1)], 3, (3, 8, 0.5)),
    ([(32, 1)], 7, (7, 4, 0.1428))])
def test_every_worker_has_a_place(machines, workers, wanted):
    assert cluster.shares(machines, workers) == wanted


@pytest.mark.parametrize("machines, workers", [([(2, 0)], 3), ([(1, 2), (9, 0)], 2), ([], None)])
def test_more_workers_than_cores_are_refused(machines, workers):
    with pytest.raises(UserError, match="give fewer --workers"):
        cluster.shares(machines, workers)


def kill_a_worker(killed, over):
    """Kills a process of Ray once it is seen to forecast a part: Ray renames it for that time."""
    import psutil
    while not (killed or over.wait(0.005)):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has ended since
                if not killed and child.cmdline()[:1] == ["ray::PartWorker.forecast"]:
                    child.kill()
                    killed.append(child.pid)


@pytest.mark.slow
def test_two_processes_of_ray_one_of_them_killed_write_what_one_writes(place, monkeypatch, capsys):
    pytest.importorskip("ray")
    write(ragged(400), ".csv")
    flags = f"{FILLED} {HOW['paths']} --pictures 2"
    assert predict(flags) == 0
    wanted = written()
    end_after_three(monkeypatch, flags)
    killed, over = [], threading.Event()
    killer = threading.Thread(target=kill_a_worker, args=(killed, over))
    killer.start()
    try:
        assert predict(f"{flags} --resume --workers 2") == 0
    finally:
        over.set()
        killer.join()
    said = capsys.readouterr().out
    assert len(killed) == 1 and "resume: 3 parts of this table are finished" in said
    assert said.count("note: a worker has died (") == 1 and written() == wanted


@pytest.mark.slow
def test_no_cluster_at_the_address_is_one_line(place, capsys):
    pytest.importorskip("ray")
    write(ragged(), ".csv")
    assert predict(f"{FILLED} --ray_address 127.0.0.1:1") == 2
    error = capsys.readouterr().err
    assert "--ray_address 127.0.0.1:1: cannot connect to a Ray cluster" in error and error.count("\n") == 1

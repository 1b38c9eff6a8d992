"""Cells as Ray tasks: the same table as the serial one, also where a worker is killed in the middle."""
import importlib.util
import os
import sys
import threading

import pytest
from helpers import rows_of, untimed

from scripts.sweeps import param_sweep

FLAGS = "--emit sample --sigma 0.3,0.4,0.5 --bias 1,4 --windows 48 --batch_size 4 --threads 1"
needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray (requirements-ray.txt) is missing")


def sweep(flags):
    return param_sweep.main(flags.split())


def kill_a_worker(table, killed, over):
    """Waits for the first rows, then kills a process of Ray that is measuring a cell."""
    import psutil
    while not (killed or over.wait(0.01)):
        if os.path.exists(table) and len(rows_of(table)) > 2:
            measuring = [child for child in psutil.Process().children(recursive=True)
                         if child.cmdline()[:1] == ["ray::_measure"]]
            for worker in measuring[:1]:
                worker.kill()
                killed.append(worker.pid)


@needs_ray
@pytest.mark.slow
def test_two_workers_one_of_them_killed_give_the_serial_table(place):
    killed, over = [], threading.Event()
    killer = threading.Thread(target=kill_a_worker, args=("ray.csv", killed, over))
    killer.start()
    try:
        assert sweep(f"{place} {FLAGS} --out ray.csv --workers 2") == 0
    finally:
        over.set()
        killer.join()
    assert len(killed) == 1
    assert sweep(f"{place} {FLAGS} --out serial.csv") == 0
    assert len(rows_of("ray.csv")) == 14 and untimed("ray.csv") == untimed("serial.csv")


@needs_ray
def test_no_cluster_at_the_address_is_one_line(place, capsys):
    assert sweep(f"{place} --ray_address 127.0.0.1:1") == 2
    error = capsys.readouterr().err
    assert "--ray_address 127.0.0.1:1: cannot connect to a Ray cluster" in error and error.count("\n") == 1


def test_without_ray_the_error_says_how_to_get_it(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    assert sweep(f"{place} --workers 2") == 2
    error = capsys.readouterr().err
    assert "requirements-ray.txt" in error and error.count("\n") == 1

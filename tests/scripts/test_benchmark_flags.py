"""Bad flags of the benchmarks: one line and exit code 2, like everywhere."""
import pytest

from scripts.benchmark import decode_memory, decode_speed, fidelity, lockstep, panel, pool_memory


@pytest.mark.parametrize("program, flags, words", [
    (decode_speed, "--acceptance 2", ["--acceptance", "2 is out of range"]),
    (decode_speed, "--budget_s 0", ["--budget_s", "0 is out of range"]),
    (decode_speed, "--budget_s long", ["--budget_s", "'long' is not a number"]),
    (decode_speed, "--cels deep:672:720:1", ["--cels: no such flag, did you mean --cells?"]),
    (decode_memory, "--mode fast", ["--mode", "'fast'", "cached"]),
    (decode_memory, "--cells", ["--cells", "expected one argument"]),
    (fidelity, "--tolerancs 1", ["--tolerancs: no such flag, did you mean --tolerances"]),
    (fidelity, "--pred_len 96", ["--pred_len: write --test_pred_len"]),
    (fidelity, "--out", ["--out", "expected one argument"]),
    (panel, "--series 0", ["--series", "0 is out of range"]),
    (panel, "--series 5", ["--checkpoints", "required"]),
    (pool_memory, "--gigabytes 0", ["--gigabytes", "0 is out of range"]),
    (pool_memory, "--folder nowhere", ["nowhere", "No such file or directory"]),
    (lockstep, "--cells x", ["--cells: no such flag"]),
])
def test_bad_flags_are_one_line(program, flags, words, capsys):
    assert program.main(flags.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and all(word in said for word in words), said

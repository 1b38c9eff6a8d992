"""Series that are missing, damaged or too short, and lengths that do not fit."""
from pathlib import Path

import pytest
from bad_input.cases import PREDICT, TEST, Case, just_target, name_of
from helpers import write_rows


def date_only():
    Path("dates.csv").write_text("date\n" + "".join(f"2020-01-{day:02d}\n" for day in range(1, 29)))


def typo():
    write_rows("typo.csv", 600, {7: "2020-01-01,1.5,12o.4"})


def nan_run():
    write_rows("gap.csv", 600, dict.fromkeys(range(99, 104), "2020-01-01,1.5,"))


CASES = [
    # data
    Case("missing data file", "--data_path nowhere.csv", ["nowhere.csv", "does not exist", "--data_path"]),
    Case("date-only csv", "--data_path dates.csv", ["dates.csv", "no numeric column"], date_only),
    Case("text in a numeric cell", "--data_path typo.csv", ["typo.csv", "line 9", "'OT'", "12o.4"], typo),
    Case("run of missing values", "--data_path gap.csv", ["gap.csv", "row 100", "'OT'", "run of 5"], nan_run),
    Case("too few rows to train", "--data_path short.csv", ["short.csv", "60 rows", "rows are needed"],
         lambda: write_rows("short.csv", 60)),
    Case("too few rows to test", f"{TEST} --data_path short.csv --test_pred_len 96",
         ["short.csv", "200 rows", "test split", "rows are needed"],
         lambda: (just_target(), write_rows("short.csv", 200))),
    # found before the training, not hours later
    Case("horizon longer than the test part, in training", "--test_pred_len 240", ["good.csv", "600 rows", "240"]),
    Case("cut ETT file", "--data_path ETTh1.csv", ["ETTh1.csv", "600", "14400"], lambda: write_rows("ETTh1.csv", 600)),
    # lengths
    Case("seq_len not a multiple of the patch", "--seq_len 50", ["--seq_len 50", "--input_token_len 12", "48"]),
    Case("test_seq_len not a multiple of the patch", "--test_seq_len 53", ["--test_seq_len 53", "12", "48"]),
    Case("seq_len below the patch", "--seq_len 5", ["--seq_len 5", "use 12"]),
    Case("output_token_len different", "--output_token_len 24",
         ["--output_token_len 24", "--input_token_len 12", "equal"]),
    Case("d_model and n_heads that do not fit", "--d_model 10 --n_heads 3",
         ["--d_model 10", "--n_heads 3", "multiple of 4"]),
    Case("odd head width", "--d_model 12 --n_heads 2", ["--d_model 12", "--n_heads 2", "multiple of 4"]),
    # forecasts beyond the end of a file
    Case("a file shorter than the context", f"{PREDICT} --data_path short.csv",
         ["short.csv", "40 rows", "takes 48", "--seq_len 36"],
         lambda: (just_target(), write_rows("short.csv", 40))),
    Case("a file with a gap in its times", PREDICT, ["good.csv", "data row 1", "not a time"], just_target),
    Case("a file with missing values", f"{PREDICT} --data_path gap.csv", ["gap.csv", "row 100", "run of 5"],
         lambda: (just_target(), nan_run())),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_bad_data_are_refused(refused, case):
    refused(case)

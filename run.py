"""Entry point: flags -> Namespace -> Exp_Forecast. `python run.py --help` lists the flags."""
import sys

from utils.errors import exit_code


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input (one line on stderr), 130 interrupted."""
    def work():
        # not at the top: an interruption while torch is loading, which takes seconds, ends like any other
        from exp.exp_forecast import Exp_Forecast
        from exp.options import parse_args
        Exp_Forecast(parse_args(argv)).run()
    return exit_code(work, "--batch_size, --seq_len, --test_pred_len or the sizes of the model",
                     "checkpoints and results so far are kept; --resume goes on with a training")


if __name__ == "__main__":
    sys.exit(main())

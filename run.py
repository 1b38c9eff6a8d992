"""Entry point: flags -> Settings -> Exp_Forecast. `python run.py --help` lists the flags."""
from exp.processes import leave
from exp.program import exit_code


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input (one line on stderr), 130 or 143 interrupted (see exp.program)."""
    def work() -> None:
        from exp.exp_forecast import Exp_Forecast
        from exp.inspection import show
        from exp.options import read_command_line
        settings = read_command_line(argv)
        if settings.run.inspect is not None:
            show(settings.run.inspect)
        else:
            Exp_Forecast(settings).run()
    return exit_code(work, "--batch_size, --seq_len, --test_pred_len or the sizes of the model",
                     "checkpoints and results so far are kept; --resume continues a training")


if __name__ == "__main__":
    leave(main())

"""Entry point: flags -> Namespace -> Exp_Forecast. `python run.py --help` lists the flags."""
import sys

from utils.errors import UserError

OUT_OF_MEMORY = ("out of memory", "allocate memory", "multiplication overflow", "calculation overflowed")


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input (one line on stderr), 130 interrupted."""
    try:
        # not at the top: an interruption while torch is loading, which takes seconds, ends like any other
        from exp.exp_forecast import Exp_Forecast
        from exp.options import parse_args
        Exp_Forecast(parse_args(argv)).run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder without permission
        print(f"error: {error.strerror or error}: {error.filename or 'no file named'}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)):
            raise
        print("error: out of memory: lower --batch_size, --seq_len, --test_pred_len or the sizes of the model",
              file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: checkpoints and results so far are kept; --resume goes on with a training", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

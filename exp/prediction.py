"""--do_predict: a forecast as files: a csv in long format, a picture a variable, and how it was made."""
import re
from pathlib import Path

from tqdm import tqdm

from data_provider.reading import Series, read_series
from exp.forecaster import Forecast, Forecaster
from utils.files import replace_when_done, write_json
from utils.plots import prediction_figure

NO_LAW = ("the forecast is a mean without quantiles (--num_samples gives them): the draft's sigma is not the "
          "uncertainty of a forecast")


def predict(forecaster: Forecaster, path: Path, horizon: int, folder: Path) -> Forecast:
    """Forecasts the file `path`; writes forecast.csv, forecast.json and forecast_*.png to `folder`."""
    series = read_series(path)
    forecast = forecaster.forecast(series, horizon, str(path))
    if not forecast.levels:
        forecast.notes.append(NO_LAW)
    say, args = forecaster.experiment.say, forecaster.args
    for note in forecast.notes:
        say(f"note: {note}")
    with replace_when_done(folder / "forecast.csv") as beside:
        forecast.frame().to_csv(beside, index=False, float_format="%.10g")
    write_json(folder / "forecast.json", {
        "data_path": str(path), "rows": len(series.values), "frequency": forecast.calendar.frequency,
        "horizon": horizon, "context": args.test_seq_len, "checkpoint": str(forecaster.checkpoint),
        "draft": args.spec_draft_ckpt, "cost": forecast.cost, "notes": forecast.notes,
        "seed": args.seed, "num_samples": args.num_samples,
        "settings": {name: value for name, value in vars(args).items() if name.startswith("spec_")
                     and (args.use_speculative or args.num_samples is not None)}})
    future = forecast.calendar.future
    say(f"forecast: {folder / 'forecast.csv'}: {len(forecast.names)} series, {horizon} steps "
        f"({forecast.calendar.frequency}), {future[0]} to {future[-1]}")
    if forecast.cost and forecast.cost["attempted"]:
        say(f"accepted {forecast.cost['accepted']} of {forecast.cost['attempted']} proposals judged, "
            f"target passes: {forecast.cost['target_passes']:g}")
    draw(folder, forecast, series, args)
    say(f"pictures: {folder}")
    return forecast


def draw(folder: Path, forecast: Forecast, series: Series, args) -> None:
    """forecast_<number>_<name>.png; replaces the pictures of an older run."""
    for picture in folder.glob("forecast_*.png"):
        picture.unlink()
    shown, calendar = max(len(forecast.calendar.future), 2 * args.input_token_len), forecast.calendar
    for c, name in enumerate(tqdm(forecast.names, desc="pictures", unit="picture", disable=args.quiet)):
        plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:40]
        history = series.values[-shown:, series.names.index(name)]
        prediction_figure(
            folder / f"forecast_{c:03d}_{plain}.png", name, calendar.history[-shown:], history, calendar.future,
            forecast.values[0, :, c], _bands(forecast, c), None if forecast.origin is None else forecast.origin[c],
            args.input_token_len, f"{len(calendar.future)} steps ({calendar.frequency}) after {calendar.history[-1]}")


def _bands(forecast: Forecast, c: int) -> list[tuple]:
    """(label, low, high) of variable c, the widest first: levels that lie symmetrically around the median."""
    at = {level: forecast.values[1 + i, :, c] for i, level in enumerate(forecast.levels)}
    pairs = [(low, high) for low in sorted(at) for high in at if low < 0.5 and abs(low + high - 1) < 1e-9]
    return [(f"{100 * (high - low):g} % of the paths", at[low], at[high]) for low, high in pairs]

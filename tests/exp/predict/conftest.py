"""What the tests of forecasts share."""
import logging

import pytest


@pytest.fixture
def notes():
    """What `Forecaster.predict` has to say, as (level, text)."""
    said = []

    class Kept(logging.Handler):
        def emit(self, record):
            said.append((record.levelno, record.getMessage()))
    logger, handler = logging.getLogger("exp.predict.forecaster"), Kept()
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)

"""Forecasting methods, and one loop over the test windows that measures them."""

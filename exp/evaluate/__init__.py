"""Ways to forecast, and one walk over the test windows that measures them."""

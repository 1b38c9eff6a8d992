"""Training: one run, its objectives and schedules."""

"""What holds for every test: examples are the same each time, and no clock judges them."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "potluck", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("potluck")

"""A PID controller of the byte budget of saves, fed by a memory profiler.

Before each save it reads the peak that the profiler measured during the one before, and moves the
limit towards `target_ratio` of the host's memory:

```text
  error = target − peak          limit += kp·error + ki·Σerror + kd·(error − last error)
```

The sum is bounded, the limit stays between its minimum and maximum, and a surge that is expected
for one save lowers the limit for that save only.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

_GIB = 1024**3
# Bound of the summed error, in GiB: after long quiet the controller must still react.
_SUM_MAX = 50.0


class MemoryRegulator:
    """See the module.

    Args:
      options: `MemoryOptions.RegulatorOptions`.

    Raises:
      ValueError: The bounds are not positive, or the minimum is not below the target.
    """

    def __init__(self, options: Any):
        low, high = options.min_memory_limit_gib, options.max_memory_limit_gib
        if high <= 0 or low <= 0:
            raise ValueError(
                f"max_memory_limit_gib and min_memory_limit_gib must be positive, got {high}, {low}"
            )
        if low >= high * options.target_ratio:
            target = high * options.target_ratio
            raise ValueError(
                f"min_memory_limit_gib must be less than target memory ({target} GiB), got {low}"
            )
        self._options = options
        self._sum = 0.0
        self._last_error = 0.0
        self._surge_gib = 0.0
        self.current_limit_bytes = int(low * _GIB)

    def update_limit_bytes(self, expected_surge_bytes: float | None = None) -> int:
        """Moves the limit by what the profiler has measured, and returns it in bytes."""
        profiler = self._options.profiler
        peak, total = float(profiler.peak_usage_gib), float(profiler.total_memory_gib)
        if expected_surge_bytes is None:
            expected = getattr(profiler, "get_expected_surge_gib", None)
            surge = float(expected()) if expected is not None else 0.0
        else:
            surge = expected_surge_bytes / _GIB
        readings = (peak, total, surge)
        if all(math.isfinite(value) and value >= 0 for value in readings):
            self.current_limit_bytes = int(self._next_gib(peak, total, surge) * _GIB)
        return self.current_limit_bytes

    def _next_gib(self, peak: float, total: float, surge: float) -> float:
        options = self._options
        error = total * options.target_ratio - peak
        step = options.kp * error + options.ki * self._sum + options.kd * (error - self._last_error)
        if surge == 0:
            # What a surge causes is no news about the steady state.
            self._sum = max(-_SUM_MAX, min(_SUM_MAX, self._sum + error))
            self._last_error = error
        if total < peak:
            step = min(total - peak, step)
        if surge > 0:
            step = min(0.0, step)
        steady = self.current_limit_bytes / _GIB + self._surge_gib + step
        low, high = options.min_memory_limit_gib, options.max_memory_limit_gib
        limit = max(low, min(high, steady - surge))
        self._surge_gib = max(low, min(high, steady)) - limit
        return limit

    @contextlib.contextmanager
    def regulate(self, *, expected_surge_bytes: float | None = None) -> Iterator[int]:
        """Updates the limit, and has the profiler measure until the block ends."""
        limit = self.update_limit_bytes(expected_surge_bytes)
        self._options.profiler.profiler_start()
        try:
            yield limit
        finally:
            self._options.profiler.profiler_end()

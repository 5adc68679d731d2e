"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm


def duration(seconds: float) -> str:
    """Seconds as a person writes them: 48s, 3m12s, 2h05m."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    return f"{s // 60}m{s % 60:02d}s" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02d}m"


class Progress:
    """Steps (or another unit) out of ``total``, shown on stderr; :meth:`line` prints without tearing the bar.

    A ``total`` of 0 is not known.
    """

    def __init__(self, total: int, start: int = 0, enabled: bool = True, unit: str = "step"):
        self._terminal = enabled and sys.stderr.isatty()
        self._enabled = enabled
        self._total, self._start, self._unit = total, start, unit
        self._began = time.monotonic()
        self._bar = None
        if self._terminal:
            self._bar = tqdm(total=total or None, initial=start, unit=unit, dynamic_ncols=True)

    def step(self, step: int, figures: str, report: bool) -> None:
        """``step`` steps are done; ``figures`` (loss, speed) are shown, off a terminal only when ``report``."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(figures, refresh=False)
        elif report and self._enabled:
            done = max(1, step - self._start)
            left = (time.monotonic() - self._began) / done * (self._total - step)
            ahead = f"/{self._total}  {figures}  ETA {duration(left)}" if self._total else f"  {figures}"
            print(f"{self._unit} {step}{ahead}", flush=True)

    def line(self, text: str) -> None:
        """Print one line."""
        if self._bar is not None:
            self._bar.write(text)
        elif self._enabled:
            print(text, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

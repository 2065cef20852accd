"""Where the seconds of a start went. No torch."""

import time


class Laps:
    """lap(name) ends the stage `name`, which began when the one before ended; a stage that comes twice adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._at = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._at
        self._at = now

    def add(self, others: "Laps") -> None:
        for stage, seconds in others.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

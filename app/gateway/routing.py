"""From the model name a caller uses to the targets that may serve it, in order."""

from dataclasses import dataclass

from app.config import RouteSettings, Settings, TargetSettings
from app.errors import ConfigurationError, ModelNotFound

LOCAL = "local"


@dataclass(frozen=True)
class Plan:
    """The targets to try, in order."""

    model: str
    targets: tuple[TargetSettings, ...]


class Router:
    """Holds targets and routes. The in-process engine is a target named `local` with a route under its served name."""

    def __init__(self, settings: Settings) -> None:
        self.targets = {target.name: target for target in settings.targets}
        self.routes = {route.model: route for route in settings.routes}
        if settings.engine.model:
            self.targets.setdefault(LOCAL, TargetSettings(name=LOCAL, provider=LOCAL, timeout_seconds=600.0))
            name = settings.engine.served_name
            self.routes.setdefault(name, RouteSettings(model=name, targets=(LOCAL,)))
        for route in self.routes.values():
            missing = [name for name in route.targets if name not in self.targets]
            if missing:
                raise ConfigurationError(f"route {route.model!r} names the unknown target {missing[0]!r}")

    @property
    def default_model(self) -> str:
        """The model of answers that name none: the first route."""
        if not self.routes:
            raise ConfigurationError("no route is configured: neither an engine model nor [[routes]]")
        return next(iter(self.routes))

    def plan(self, model: str) -> Plan:
        """Raises ModelNotFound."""
        route = self.routes.get(model)
        if route is None:
            raise ModelNotFound(model)
        return Plan(model, tuple(self.targets[name] for name in route.targets))

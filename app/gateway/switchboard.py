"""What requests are planned with, as one object that is replaced as a whole: routes, targets, prices."""

from collections.abc import Mapping

from app.config import Settings
from app.gateway.prices import PriceTable
from app.gateway.providers.base import Provider
from app.gateway.providers.local import LocalProvider
from app.gateway.providers.local_config import Devices
from app.gateway.providers.registry import make_provider
from app.gateway.resilience import GuardedTarget
from app.gateway.routing import Planner, Router


class Switchboard:
    """A request keeps the one it began with to its end."""

    def __init__(self, settings: Settings, targets: dict[str, GuardedTarget], devices: Devices) -> None:
        self.devices = devices
        self.router = Router(settings)
        self.targets = targets
        self._leave_out_adapters(settings)
        self.prices = PriceTable(settings.prices)
        limits = settings.limits
        self.planner = Planner(targets, self.prices, limits.assumed_output_tokens, limits.overload_seconds * 1000)

    def _leave_out_adapters(self, settings: Settings) -> None:
        """Those that a model which goes on as it was does not have: the base model would answer in their name."""
        for name, engine in settings.local_models.items():
            provider = self.targets[name].provider
            if isinstance(provider, LocalProvider):
                for model in engine.adapter_models.keys() - provider.settings.adapter_models.keys():
                    del self.router.routes[model]

    @property
    def providers(self) -> dict[str, Provider]:
        return {name: guarded.provider for name, guarded in self.targets.items()}


def build(settings: Settings, secrets: Mapping[str, str], before: "Switchboard | None" = None) -> Switchboard:
    """A switchboard in which targets that have not changed go on as they are. Raises ConfigurationError."""
    devices = before.devices if before else Devices(settings.engine.memory_budget_bytes)
    targets: dict[str, GuardedTarget] = {}
    for name, target in Router(settings).targets.items():
        old = before.targets.get(name) if before else None
        secret = secrets.get(target.credential, "")
        if old and old.target == target and old.secret == secret:
            targets[name] = old
        else:
            targets[name] = GuardedTarget(target, make_provider(target, settings, secrets, devices), secret)
    return Switchboard(settings, targets, devices)

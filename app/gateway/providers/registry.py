"""From a target's settings to the provider that serves it."""

from collections.abc import Mapping

from app.config import Settings, TargetSettings
from app.errors import ConfigurationError
from app.gateway.providers.anthropic import AnthropicProvider
from app.gateway.providers.azure import AzureProvider
from app.gateway.providers.base import Provider
from app.gateway.providers.fake import FakeProvider
from app.gateway.providers.http import HttpProvider
from app.gateway.providers.local import LocalProvider
from app.gateway.providers.local_config import Devices
from app.gateway.providers.ollama import OllamaProvider
from app.gateway.providers.openai import OpenAIProvider
from app.gateway.providers.precedent import PrecedentProvider
from app.gateway.providers.tgi import TgiProvider
from app.gateway.providers.triton import TritonProvider

UPSTREAMS: dict[str, type[HttpProvider]] = {
    "openai": OpenAIProvider,
    "azure": AzureProvider,
    "anthropic": AnthropicProvider,
    "tgi": TgiProvider,
    "triton": TritonProvider,
    "ollama": OllamaProvider,
    "precedent": PrecedentProvider,
}


def make_provider(target: TargetSettings, settings: Settings, secrets: Mapping[str, str], devices: Devices) -> Provider:
    """`secrets`: stored credentials by name.  devices: what in-process models share. Raises ConfigurationError."""
    if target.provider == "local":
        models = settings.local_models
        engine = models.get(target.name) or models.get(target.model) or settings.engine
        return LocalProvider(engine, target.name, devices)
    if target.provider == "fake":
        return FakeProvider(target)
    if target.provider not in UPSTREAMS:
        raise ConfigurationError(f"target {target.name!r}: there is no provider {target.provider!r}")
    provider = UPSTREAMS[target.provider](target)
    if target.credential:
        if target.credential not in secrets:
            raise ConfigurationError(f"target {target.name!r}: there is no credential {target.credential!r}")
        provider.secret = secrets[target.credential]
    return provider

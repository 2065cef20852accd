"""Azure OpenAI: OpenAI's wire format under Azure's addresses and keys.

Sources: https://learn.microsoft.com/azure/ai-services/openai/reference (deployments path, `api-version`, `api-key`) and
…/azure/ai-foundry/openai/api-version-lifecycle (the `/openai/v1` path). The deployment in the path decides, not `model`
in the body. Streams may begin with a chunk of empty `choices` (prompt_filter_results); a filtered prompt is a 400 with
`code: content_filter`; waits are given in `retry-after-ms` and `x-ms-retry-after-ms`.
"""

from urllib.parse import quote

import httpx

from app.config import TargetSettings
from app.gateway.providers.openai import OpenAIProvider
from app.gateway.schemas import ChatRequest


class AzureProvider(OpenAIProvider):
    """`base_url` is the resource's endpoint, such as https://NAME.openai.azure.com; `model` names the deployment."""

    def __init__(self, target: TargetSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        super().__init__(target, transport)
        self.limit_field = "max_completion_tokens"

    def headers(self, key: str) -> dict[str, str]:
        return {"api-key": key} if key else {}

    def probe_path(self) -> str:
        return "openai/v1/models"

    def path(self, request: ChatRequest) -> str:
        operation = super().path(request)
        version = self.target.api_version
        if not version:
            return f"openai/v1/{operation}"
        deployment = quote(self.target.model or request.model, safe="")
        return f"openai/deployments/{deployment}/{operation}?api-version={quote(version)}"

"""The errors of the application, as one tree with three renderings.

AppError
├── InvalidRequest            400  the request cannot be understood or asks for something impossible
│   └── ContextTooLong        400  the prompt does not fit the model; names both lengths
├── Unauthenticated           401  no key, an unknown key, a revoked or expired key
├── BudgetExceeded            402  the tenant's or key's money is spent
├── Forbidden                 403  a known principal without the scope
├── NotFound                  404  absent, or another tenant's: the caller cannot tell which
│   └── ModelNotFound         404
├── Conflict                  409  the state of the object does not allow this
├── PayloadTooLarge           413
├── UnsupportedMediaType      415
├── UnreadableDocument        422  a file of a known type whose text cannot be had; carries the reason
├── RateLimited               429  carries seconds to wait
├── UpstreamError             502  every permitted target failed
│   └── UpstreamTimeout       504
├── Unavailable               503  not ready yet, or shutting down
└── ConfigurationError        500  raised at start only; the process does not come up

`problem()` is RFC 9457 for /api, `openai()` and `anthropic()` are the shapes their official clients
turn into typed exceptions. The module imports the standard library alone: it is the ground floor.
"""

import math
from http import HTTPStatus
from typing import Any, ClassVar


class AppError(Exception):
    """Base of everything the application raises on purpose. `detail` is for the caller's eyes."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    openai_type: ClassVar[str] = "server_error"
    anthropic_type: ClassVar[str] = "api_error"

    def __init__(self, detail: str, *, param: str | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.param = param
        self.extra = extra

    @property
    def headers(self) -> dict[str, str]:
        """Response headers this error asks for."""
        return {}

    def problem(self) -> dict[str, Any]:
        """RFC 9457 problem details, media type application/problem+json."""
        body: dict[str, Any] = {
            "type": f"urn:precedent:error:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        if self.param:
            body["param"] = self.param
        return body | self.extra

    def openai(self) -> dict[str, Any]:
        """The error object of the OpenAI API."""
        error = {"message": self.detail, "type": self.openai_type, "param": self.param, "code": self.code}
        return {"error": error}

    def anthropic(self) -> dict[str, Any]:
        """The error object of the Anthropic Messages API."""
        return {"type": "error", "error": {"type": self.anthropic_type, "message": self.detail}}


class InvalidRequest(AppError):
    status, code = 400, "invalid_request"
    openai_type, anthropic_type = "invalid_request_error", "invalid_request_error"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"

    def __init__(self, prompt_tokens: int, max_tokens: int) -> None:
        super().__init__(
            f"The prompt has {prompt_tokens} tokens; the model takes at most {max_tokens} including at least one "
            "of output.",
            param="messages",
            prompt_tokens=prompt_tokens,
            max_model_tokens=max_tokens,
        )


class Unauthenticated(AppError):
    status, code = 401, "invalid_api_key"
    openai_type, anthropic_type = "authentication_error", "authentication_error"

    @property
    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class BudgetExceeded(AppError):
    status, code = 402, "budget_exceeded"
    openai_type, anthropic_type = "insufficient_quota", "billing_error"


class Forbidden(AppError):
    status, code = 403, "forbidden"
    openai_type, anthropic_type = "permission_error", "permission_error"


class NotFound(AppError):
    status, code = 404, "not_found"
    openai_type, anthropic_type = "invalid_request_error", "not_found_error"


class ModelNotFound(NotFound):
    code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model {model!r} does not exist or this key may not use it.", param="model")


class Conflict(AppError):
    status, code = 409, "conflict"
    openai_type, anthropic_type = "invalid_request_error", "invalid_request_error"


def source_gone() -> Conflict:
    """What an answer in flight ends with when a document that it reads goes, wherever that is noticed."""
    return Conflict("A document that this answer was reading has been deleted or replaced; ask again.")


class PayloadTooLarge(AppError):
    status, code = 413, "payload_too_large"
    openai_type, anthropic_type = "invalid_request_error", "request_too_large"


class UnsupportedMediaType(AppError):
    status, code = 415, "unsupported_media_type"
    openai_type, anthropic_type = "invalid_request_error", "invalid_request_error"


class UnreadableDocument(AppError):
    status, code = 422, "unreadable_document"
    openai_type, anthropic_type = "invalid_request_error", "invalid_request_error"


class RateLimited(AppError):
    status, code = 429, "rate_limit_exceeded"
    openai_type, anthropic_type = "rate_limit_error", "rate_limit_error"

    def __init__(self, detail: str, *, retry_after: float) -> None:
        super().__init__(detail, retry_after=retry_after)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(max(1, math.ceil(self.retry_after)))}


class UpstreamError(AppError):
    status, code = 502, "upstream_error"


class UpstreamTimeout(UpstreamError):
    status, code = 504, "upstream_timeout"
    anthropic_type = "timeout_error"


class Unavailable(AppError):
    status, code = 503, "unavailable"
    anthropic_type = "overloaded_error"


class ConfigurationError(AppError):
    code = "configuration_error"

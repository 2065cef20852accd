"""The forms that documents come in, as OpenAPI tells of them: the handlers read them piece by piece themselves."""

from dataclasses import dataclass

from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema

FILE = Schema(type=OpenAPIType.STRING, content_media_type="application/octet-stream")
WORDS = Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.STRING))


def _form(properties: dict[str, Schema]) -> RequestBody:
    schema = Schema(type=OpenAPIType.OBJECT, properties=dict(properties), required=["files"])
    return RequestBody(content={"multipart/form-data": OpenAPIMediaType(schema=schema)}, required=True)


@dataclass
class Upload(Operation):
    """Files with a collection and matters."""

    def __post_init__(self) -> None:
        files = Schema(type=OpenAPIType.ARRAY, items=FILE, min_items=1)
        self.request_body = _form({"files": files, "collection": Schema(type=OpenAPIType.STRING), "labels": WORDS})


@dataclass
class Replacement(Operation):
    """One file."""

    def __post_init__(self) -> None:
        self.request_body = _form({"files": FILE})

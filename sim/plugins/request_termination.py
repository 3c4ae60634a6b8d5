"""The request-termination plugin: answers in the place of the service."""

from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import Field, model_validator

from sim import __version__
from sim.document import Model
from sim.errors import FieldError
from sim.pdk import Kong
from sim.pdk.response import JSON

MESSAGES: Final = {
    401: "Unauthorized",
    404: "Not found",
    405: "Method not allowed",
    500: "An unexpected error occurred",
    502: "Bad Gateway",
    503: "Service unavailable",
}
"""What Kong's plugin says where the configuration says nothing; of other statuses it gives no body."""


class RequestTerminationConfig(Model):
    """Configuration of the plugin.

    Attributes:
        status_code: of the answer.
        message: of the answer, in Kong's form; not beside `body` or `content_type`.
        content_type: of `body`; JSON when left out.
        body: of the answer, as it is.
        echo: the answer is what the client asked, as JSON, beside what was matched.
        trigger: only a request with this header or query argument is answered.
    """

    status_code: Annotated[int, Field(ge=100, le=599)] = 503
    message: str | None = None
    content_type: str | None = None
    body: str | None = None
    echo: bool = False
    trigger: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] | None = None

    @model_validator(mode="after")
    def _answers_one_way(self) -> Self:
        if self.message is not None and (self.body is not None or self.content_type is not None):
            raise FieldError("message stands beside body or content_type", field="message", cure="keep one of the two")
        if self.echo and (self.message is not None or self.body is not None):
            raise FieldError("echo stands beside message or body", field="echo", cure="keep one of the two")
        if self.content_type is not None and self.body is None:
            raise FieldError("content_type stands without body", field="content_type", cure="add body")
        return self


class RequestTermination:
    """The plugin."""

    NAME: ClassVar[str] = "request-termination"
    PRIORITY: ClassVar[int] = 2
    VERSION: ClassVar[str] = __version__
    Config = RequestTerminationConfig

    def access(self, kong: Kong, conf: RequestTerminationConfig) -> None:
        """Answer."""
        trigger = conf.trigger
        if trigger and kong.request.get_header(trigger) is None and kong.request.get_query_arg(trigger) is None:
            return
        message = conf.message or MESSAGES.get(conf.status_code)
        told = {"message": message} if message else {}
        if conf.echo:
            kong.response.exit(conf.status_code, told | _echo(kong))
        if conf.body is not None:
            kong.response.exit(conf.status_code, conf.body, {"Content-Type": conf.content_type or JSON})
        kong.response.exit(conf.status_code, told or None)


def _echo(kong: Kong) -> dict[str, Any]:
    return {
        "kong": {
            "node_id": kong.node.get_id(),
            "worker_pid": kong.ngx.worker.pid(),
            "hostname": kong.node.get_hostname(),
        },
        "request": {
            "scheme": kong.request.get_scheme(),
            "host": kong.request.get_host(),
            "port": kong.request.get_port(),
            "method": kong.request.get_method(),
            "path": kong.request.get_path(),
            "query": kong.request.get_query(),
            "headers": kong.request.get_headers(),
            "uri_captures": kong.request.get_uri_captures(),
        },
        "matched_route": kong.router.get_route(),
        "matched_service": kong.router.get_service(),
    }

"""A plugin that greets, and traces it rightly."""


class Greeter:
    PRIORITY = 1000
    VERSION = "1.0"

    def access(self, kong, conf):
        span = kong.tracing.start_span("greet")
        try:
            name = kong.request.get_query_arg("name")
            if name is None:
                kong.response.exit(400, {"message": "who are you?"})
            span.set_attribute("name", name)
            kong.ctx.plugin["name"] = name
        finally:
            span.finish()

    def header_filter(self, kong, conf):
        if "name" in kong.ctx.plugin:
            kong.response.set_header("X-Greeting", f"hello, {kong.ctx.plugin['name']}")

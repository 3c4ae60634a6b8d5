"""The same with a mistake: who has no name leaves a span open."""


class Leaky:
    PRIORITY = 1000
    VERSION = "1.0"

    def access(self, kong, conf):
        span = kong.tracing.start_span("greet")
        if kong.request.get_query_arg("name") is None:
            return
        span.finish()

"""`kongsim verify`: runs plugins in the gateway, in virtual time, under whatever may happen to a request, and reports.

| module | |
|---|---|
| `mistakes` | what is reported: the gateway's codes, and a mistake with its place |
| `program` | what happens: requests, aborts, failures, reloads; drawn by hypothesis, written as one line |
| `outside` | the services that plugins call |
| `watch` | looks at handlers and timers while they run |
| `trial` | one program, run in a virtual world |
| `search` | many programs; for each mistake the smallest |
| `formats`, `baseline` | text, JSON, SARIF, annotations · mistakes that are known |

Source: kong-semantics section 17 (H1 to H51); the tracer's own codes are those of `kongtrace.findings`.
"""

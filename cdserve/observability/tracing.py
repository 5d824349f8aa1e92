"""OpenTelemetry spans beside vLLM's: a response, its decisions, and in them each draw and scoring.

They go where vLLM's ``--otlp-traces-endpoint`` sends its own, and cost next to nothing without it.
No prompt and no response is in them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cdserve.decoders import Decision

_TRACER = trace.get_tracer("cdserve")
_HEADERS = TraceContextTextMapPropagator()


class ResponseSpans:
    """The spans of one response under a policy.

    Args:
        method: the policy's.
        request_id: vLLM's, of the prompt.
        choice: index of the response.
        headers: the client's trace context; None for a trace of its own.
    """

    def __init__(
        self, method: str, request_id: str, choice: int, headers: Mapping[str, str] | None
    ) -> None:
        parent = _HEADERS.extract(headers) if headers else None
        attributes: dict[str, str | int] = {
            "cdserve.method": method,
            "cdserve.choice": choice,
            "gen_ai.request.id": request_id,
        }
        self._response = _TRACER.start_span(f"response {method}", parent, attributes=attributes)
        self._decision: trace.Span | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What puts the spans of engine requests, which are vLLM's, under the one that is open."""
        if not self._response.is_recording():
            return {}
        made: dict[str, str] = {}
        _HEADERS.inject(made, _inside(self._decision or self._response))
        return {"trace_headers": made}

    @contextmanager
    def during(self, name: str, **attributes: Any) -> Iterator[None]:
        """A span of what a decision takes, ``generate`` or ``score``, in the decision's."""
        if self._decision is None:
            self._decision = _TRACER.start_span("decision", _inside(self._response))
        known = {f"cdserve.{key}": value for key, value in attributes.items()}
        span = _TRACER.start_span(name, _inside(self._decision), attributes=known)
        try:
            yield
        except Exception as error:  # its message may have text of the client's
            span.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            span.end()

    def decided(self, decision: Decision) -> None:
        """Ends the decision's span."""
        if self._decision is not None:
            self._decision.set_attributes(
                {
                    "cdserve.candidates": len(decision.candidates),
                    "cdserve.tokens": len(decision.candidate.token_ids),
                    "cdserve.score": decision.score.total,
                    "cdserve.kl_bound": decision.kl_bound,
                    "cdserve.tie": decision.tie,
                }
            )
            self._decision.end()
            self._decision = None

    def reported(self, report: Mapping[str, Any]) -> None:
        """Tells the response's span what the report counts."""
        counts = ("decisions", "candidates", "candidate_tokens", "score")
        self._response.set_attributes({f"cdserve.{key}": report[key] for key in counts})
        self._response.set_attribute("cdserve.kl_bound", report["kl"]["bound"])

    def end(self, outcome: str) -> None:
        """Ends the response's span, by vLLM's finish reason, ``error`` or ``cancelled``."""
        if self._decision is not None:
            self._decision.end()
        self._response.set_attribute("cdserve.outcome", outcome)
        if outcome in ("error", "cancelled"):
            self._response.set_status(trace.StatusCode.ERROR, outcome)
        self._response.end()


def _inside(span: trace.Span) -> Any:
    return trace.set_span_in_context(span)

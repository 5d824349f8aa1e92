"""OpenTelemetry spans of a response, its decisions, and the draws and scorings in a decision.

The spans are exported with vLLM's own, to its ``--otlp-traces-endpoint``, and cost next to nothing
without one. They contain no text of prompts and responses.
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
    """Spans of one response with a policy.

    Args:
        method: method of the policy.
        request_id: vLLM's request id of the prompt.
        choice: index of the response.
        headers: trace context of the client; None to start a new trace.
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
        """Arguments of an engine request that make vLLM's spans children of the open span."""
        if not self._response.is_recording():
            return {}
        headers: dict[str, str] = {}
        _HEADERS.inject(headers, _context(self._decision or self._response))
        return {"trace_headers": headers}

    @contextmanager
    def span(self, name: str, **attributes: Any) -> Iterator[None]:
        """Opens ``generate``, ``score`` or ``compare`` inside the span of the current decision."""
        if self._decision is None:
            self._decision = _TRACER.start_span("decision", _context(self._response))
        prefixed = {f"cdserve.{key}": value for key, value in attributes.items()}
        span = _TRACER.start_span(name, _context(self._decision), attributes=prefixed)
        try:
            yield
        except Exception as error:  # the message may contain text of the client
            span.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            span.end()

    def end_decision(self, decision: Decision) -> None:
        """Ends the span of the current decision, with its counts, score and KL bound."""
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

    def set_report(self, report: Mapping[str, Any]) -> None:
        """Adds the report's counts, score and KL bound to the span of the response."""
        counts = ("decisions", "candidates", "candidate_tokens", "score")
        self._response.set_attributes({f"cdserve.{key}": report[key] for key in counts})
        self._response.set_attribute("cdserve.kl_bound", report["kl"]["bound"])

    def end(self, outcome: str) -> None:
        """Ends the span of the response.

        Args:
            outcome: vLLM's finish reason, ``error`` or ``cancelled``.
        """
        if self._decision is not None:
            self._decision.end()
        self._response.set_attribute("cdserve.outcome", outcome)
        if outcome in ("error", "cancelled"):
            self._response.set_status(trace.StatusCode.ERROR, outcome)
        self._response.end()


def _context(span: trace.Span) -> Any:
    return trace.set_span_in_context(span)

"""Grammars that continue from block to block.

vLLM starts a request's grammar at the first token that the request draws. A candidate of a later
block is a request whose prompt ends with the accepted blocks. Here the candidate's grammar first
reads those blocks, by vLLM's own code, as if the request had drawn them token by token. So each
token is masked as in plain decoding, also where a reasoning parser delays the grammar.
"""

from dataclasses import replace
from types import SimpleNamespace

from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

from cdserve.worker.request import WorkerRequest

_compile = StructuredOutputManager._create_grammar


def install() -> None:
    """Extends vLLM's manager of grammars, which only the ``EngineCore`` process uses."""
    StructuredOutputManager._create_grammar = _create_grammar


def _create_grammar(manager: StructuredOutputManager, request: Request) -> StructuredOutputGrammar:
    """As vLLM's, after reading the part of the response that is in the prompt."""
    grammar = _compile(manager, request)
    asked = WorkerRequest.of(request.sampling_params.extra_args)
    start = None if asked is None else asked.response_start
    if start is not None and start < request.num_prompt_tokens:
        _read_response(manager, request, start, grammar)
    return grammar


def _read_response(
    manager: StructuredOutputManager,
    request: Request,
    start: int,
    grammar: StructuredOutputGrammar,
) -> None:
    """Advances a new grammar by the tokens of the prompt from ``start`` on.

    Raises:
        ValueError: the grammar does not accept the tokens.
    """
    structured = replace(request.structured_output_request, _grammar=grammar)
    prompt = request.prompt_token_ids
    # Stands for the request while it drew these tokens.
    drawing = SimpleNamespace(
        request_id=request.request_id,
        use_structured_output=True,
        structured_output_request=structured,
        prompt_token_ids=prompt[:start],
        all_token_ids=prompt[:start],
    )
    for token in prompt[start:]:
        drawing.all_token_ids.append(token)
        if not manager.accept_tokens(drawing, [token]):
            raise ValueError(f"the grammar of request {request.request_id} rejects its prefix")
    request.structured_output_request.reasoning_ended = structured.reasoning_ended
    request.structured_output_request.reasoner = structured.reasoner

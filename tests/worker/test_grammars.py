"""Grammars of later blocks are in the state of a grammar whose request drew all tokens."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from cdserve.demo.tiny import MODEL_DIR
from cdserve.demo.tiny.build.folders import load_tokenizer
from cdserve.worker import grammars
from cdserve.worker.request import WorkerRequest

TOKENIZER = load_tokenizer(MODEL_DIR)
PROMPT = TOKENIZER.encode("Review: travel lawn mower (garden).", add_special_tokens=False)
SCHEMA = {"type": "object", "properties": {"good": {"type": "boolean"}}, "required": ["good"]}
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    # name: (the grammar, a text of it)
    "regex": ({"regex": "(good|bad){3}"}, "goodbadgood"),
    "JSON schema": ({"json": SCHEMA}, '{"good": true}'),
    "choice": ({"choice": ["a wonderful film", "a wonderful book"]}, "a wonderful book"),
    "EBNF": ({"grammar": 'root ::= "(" root ")" | "x"'}, "((x))"),
}
BACKENDS = {
    "xgrammar": list(KINDS),
    "guidance": list(KINDS),
    "outlines": ["regex", "JSON schema", "choice"],
}
END = 7
"""Token that ends the reasoning."""


class Reasoner:
    """A reasoning parser whose reasoning ends with ``END``."""

    def __init__(self, **_: Any) -> None:
        pass

    def is_reasoning_end(self, token_ids: Sequence[int]) -> bool:
        return END in token_ids

    def is_reasoning_end_streaming(self, token_ids: Sequence[int], delta: Sequence[int]) -> bool:
        return END in delta


@pytest.fixture(scope="module")
def config() -> Any:
    arguments = EngineArgs(model=str(MODEL_DIR), dtype="float32", max_model_len=64)
    return arguments.create_engine_config()


@pytest.fixture
def manager(config: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[StructuredOutputManager]:
    """A manager as in an engine that cdserve has started."""
    vllm = StructuredOutputManager._create_grammar
    monkeypatch.setattr(StructuredOutputManager, "_create_grammar", vllm)  # restores it at the end
    grammars.install()
    manager = StructuredOutputManager(config)
    manager._use_async_grammar_compilation = False
    yield manager
    manager.clear_backend()


def started(
    manager: StructuredOutputManager, params: SamplingParams, drawn: Sequence[int] = ()
) -> Request:
    """A request whose prompt ends with tokens of the response, and its grammar."""
    params = params.clone()
    params.extra_args = WorkerRequest(response_start=len(PROMPT)).added_to(None)
    request = Request("one", [*PROMPT, *drawn], params, None)
    manager.grammar_init(request)
    return request


def masks(manager: StructuredOutputManager, request: Request) -> list[int]:
    """Bits of the tokens that the request may draw next."""
    bits = manager.grammar_bitmask({"one": request}, ["one"], {})
    return bits[0].tolist()


def draw(manager: StructuredOutputManager, request: Request, token: int) -> bool:
    """Adds a token as vLLM's scheduler does."""
    request.append_output_token_ids(token)
    return manager.accept_tokens(request, [token])


def valid_params(config: Any, backend: str, grammar: Mapping[str, Any]) -> SamplingParams:
    """Parameters as vLLM's input processor leaves them."""
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**grammar), max_tokens=32)
    params.update_from_generation_config({}, TOKENIZER.eos_token_id)
    config.structured_outputs_config.backend = backend
    params.verify(config.model_config, None, config.structured_outputs_config, TOKENIZER)
    return params


@pytest.mark.parametrize(
    ("backend", "kind"), [(name, kind) for name, kinds in BACKENDS.items() for kind in kinds]
)
def test_continued_grammar_masks_as_one_that_drew_every_token(
    config: Any, manager: StructuredOutputManager, backend: str, kind: str
) -> None:
    grammar, text = KINDS[kind]
    params = valid_params(config, backend, grammar)
    tokens = [*TOKENIZER.encode(text, add_special_tokens=False), TOKENIZER.eos_token_id]
    whole = started(manager, params)
    for i, token in enumerate(tokens):
        assert masks(manager, started(manager, params, tokens[:i])) == masks(manager, whole)
        assert draw(manager, whole, token)
    assert whole.structured_output_request.grammar.is_terminated()
    continued = started(manager, params, tokens)
    assert continued.structured_output_request.grammar.is_terminated()


def test_continued_grammar_begins_where_the_reasoning_ended(
    config: Any, manager: StructuredOutputManager
) -> None:
    manager.reasoner_cls = Reasoner
    params = valid_params(config, "xgrammar", KINDS["regex"][0])
    text = TOKENIZER.encode("goodbadgood", add_special_tokens=False)
    tokens = [*TOKENIZER.encode("Well, bad.", add_special_tokens=False), END, *text]
    whole = started(manager, params)
    for i, token in enumerate(tokens):
        continued = started(manager, params, tokens[:i])
        assert masks(manager, continued) == masks(manager, whole)
        assert draw(manager, continued, token)
        assert draw(manager, whole, token)
        assert masks(manager, continued) == masks(manager, whole)


def test_prefix_outside_the_grammar_fails_its_request(
    config: Any, manager: StructuredOutputManager
) -> None:
    params = valid_params(config, "xgrammar", {"regex": "good"})
    request = started(manager, params, TOKENIZER.encode("bad", add_special_tokens=False))
    assert isinstance(request.structured_output_request.grammar, ValueError)

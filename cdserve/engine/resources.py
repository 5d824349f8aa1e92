"""The engine with everything that its requests share."""

from dataclasses import dataclass

from cdserve.engine.first_tokens import FirstTokenReader
from cdserve.engine.readers import PathKLReader, TokenStatsReader, ValueReader
from cdserve.engine.slots import Slots
from cdserve.engine.vllm import EngineClient, TokenizerLike


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResources:
    """An engine with the readers of its results and the slots of its batch.

    Attributes:
        engine: vLLM's engine.
        values: reads V of prefixes.
        token_stats: reads statistics of the tokens of responses.
        path_kl: reads the KL of steered requests.
        first_tokens: reads first tokens of later requests.
        slots: bounds the candidates that run at once.
    """

    engine: EngineClient
    values: ValueReader
    token_stats: TokenStatsReader
    path_kl: PathKLReader
    first_tokens: FirstTokenReader
    slots: Slots

    @property
    def tokenizer(self) -> TokenizerLike:
        """The model's tokenizer."""
        return self.engine.renderer.get_tokenizer()

    def close(self) -> None:
        """Removes the tables shared with the worker."""
        for reader in (self.values, self.token_stats, self.path_kl, self.first_tokens):
            reader.close()

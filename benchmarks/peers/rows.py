"""The rows of the table."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to an answer.

    Attributes:
        name: as its driver knows it.
        shown: as the table has it; ``{k}`` and others are the setting's.
        driver: the module that runs it.
        against: the row of cdserve that does the same, which it is compared with.
        scorer: what selects or guides.
        one_at_a_time: whether it answers one prompt at a time.
    """

    name: str
    shown: str
    driver: str = "over_http"
    against: str | None = None
    scorer: str = "value head, in the engine"
    one_at_a_time: bool = False


BEST_OF_N, BLOCKWISE, BEAMS, TOKENWISE = (
    "cdserve best_of_n",
    "cdserve blockwise_cd",
    "cdserve beams",
    "cdserve tokenwise_cd",
)

ROWS = (
    Row(name="vLLM", shown="vLLM, plain", scorer="none"),
    Row(name=BEST_OF_N, shown="**cdserve** `best_of_n`, n = {k}"),
    Row(
        name="vLLM n=K",
        shown="vLLM `n={k}`, the client selects",
        against=BEST_OF_N,
        scorer="value head, by the score route",
    ),
    Row(
        name="its_hub",
        shown="its_hub `BestOfN`, budget {k}",
        driver="with_its_hub",
        against=BEST_OF_N,
        scorer="value head, by the score route",
    ),
    Row(
        name="optillm",
        shown="optillm `bon`, n = {k}",
        against=BEST_OF_N,
        scorer="the model itself, asked to rate",
    ),
    Row(name=BLOCKWISE, shown="**cdserve** `blockwise_cd`, K = {k}, M = {m}"),
    Row(
        name="Transformers blockwise",
        shown="Transformers loop, K = {k}, M = {m}",
        driver="with_transformers",
        against=BLOCKWISE,
        scorer="value head, one more pass",
        one_at_a_time=True,
    ),
    Row(
        name=BEAMS, shown="**cdserve** `blockwise_cd`, {beam_width} beams, {k} candidates, M = {m}"
    ),
    Row(
        name="ThinkBooster",
        shown="ThinkBooster, {beam_width} beams, {k} candidates, M = {m}",
        driver="with_thinkbooster",
        against=BEAMS,
        scorer="value head, by the score route",
    ),
    Row(
        name=TOKENWISE,
        shown="**cdserve** `tokenwise_cd`, β = {beta}",
        scorer="Q-head, in the engine",
    ),
    Row(
        name="Transformers token-wise by Q",
        shown="Transformers loop, β = {beta}, by Q",
        driver="with_transformers",
        against=TOKENWISE,
        scorer="Q-head, in the loop",
        one_at_a_time=True,
    ),
    Row(
        name="Transformers token-wise by V",
        shown="Transformers loop, β = {beta}, by V of the top {top_k}",
        driver="with_transformers",
        against=TOKENWISE,
        scorer="value head, {top_k} tokens evaluated per step",
        one_at_a_time=True,
    ),
)

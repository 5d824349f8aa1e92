"""Q-heads are checked against the model when the worker starts."""

import pytest
import torch

from cdserve.demo import Q_HEAD_DIR
from cdserve.plugin.steerer import Steerer


def test_a_head_of_more_tokens_than_the_model_s_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sentiment-q has values of 1536 tokens; the model has 9"):
        Steerer([str(Q_HEAD_DIR)], torch.device("cpu"), 9, reports=True)

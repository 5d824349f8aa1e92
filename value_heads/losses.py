"""Losses of value learning."""

from torch import Tensor


def masked_squared_error(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return half the squared error, averaged over the positions where the mask is True.

    The sum over rewards is taken, not their mean. Its gradient with respect to a value is
    (V - target) / #positions. Controlled Decoding (arXiv 2310.17022), equation 4.

    Args:
        values, targets: float [..., G], in reward units; no gradient flows into the targets.
        mask: bool [...].

    Returns:
        float [], in squared reward units.

    Raises:
        ValueError: the shapes do not agree, or no position counts.
    """
    if values.shape != targets.shape or values.shape[:-1] != mask.shape:
        raise ValueError(
            "values, targets and mask must be [..., G], [..., G] and [...], got "
            f"{list(values.shape)}, {list(targets.shape)} and {list(mask.shape)}"
        )
    count = mask.sum()
    if count == 0:
        raise ValueError("mask must be True somewhere")
    errors = (values - targets.detach())[mask]
    return 0.5 * errors.square().sum() / count

"""Heads and neurons through bitsandbytes' linears; weights are refused there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from excise import ExciseError, Sample, load_model
from excise.core.loading import LoadOptions
from excise.lrp.run import score_samples


pytest.importorskip("bitsandbytes")

SAMPLES = [Sample((5, 17, 3, 29, 9, 2), answer=3), Sample((4, 9, 31, 2), answer=11)]
BITS: dict[int, dict[str, Any]] = {4: {"load_in_4bit": True}, 8: {"load_in_8bit": True}}


@pytest.mark.filterwarnings("ignore")  # bitsandbytes has many, on a CPU
@pytest.mark.parametrize(("bits", "agreement"), [(4, 0.7), (8, 0.95)])
@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_scores_through_quantised_linears(
    kind: str, bits: int, agreement: float, tiny_folder: Callable[[str], Path]
):
    full = load_model(str(tiny_folder(kind)), LoadOptions(dtype="float32")).model
    model = load_model(str(tiny_folder(kind)), LoadOptions(dtype="float32", **BITS[bits])).model
    expected, found = score_samples(full, SAMPLES, "logit"), score_samples(model, SAMPLES, "logit")
    assert found.rank_correlation(expected, "neurons") > agreement
    with pytest.raises(ExciseError, match=r"is quantised \(Linear.*its weights have no relevance"):
        score_samples(model, SAMPLES, "logit", weights=["*"])
    with pytest.raises(ExciseError, match="the model's weights differ"):
        found.check_model(full)

"""Generation against plain loops, and draws against exact probabilities."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from excise.core import generation
from excise.core.errors import ExciseError
from excise.core.generation import Decoding, complete
from excise.core.loading import load_model
from scipy.stats import chisquare
from torch import Tensor


Tiny = Callable[..., Any]

PROMPTS = ((1, 17, 5, 90), (1, 8), (1, 33, 33, 12, 7, 60, 41, 9, 100), (1, 8, 51), (1, 70), (1, 71))
"""Of several lengths, two of them alike but for one token."""

KINDS = ("llama-gqa", "opt", "opt-350m", "gemma3")


def grown(model: Any, decoding: Decoding, prompts: Sequence[Any] = PROMPTS, batch: int = 4) -> Any:
    """Return the completions in the order of the prompts."""
    found = dict(complete(model, prompts, decoding, batch))
    return [found[index] for index in range(len(prompts))]


def next_logits(model: Any, ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([list(ids)]), use_cache=False).logits[0, -1].double()


def plain(model: Any, prompt: Sequence[int], n: int, ends: Sequence[int]) -> list[int]:
    """Take the most likely token, again and again: no cache, no padding, no neighbours."""
    ids = list(prompt)
    for _ in range(n):
        token = int(next_logits(model, ids).argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


def sliding_gemma(seed: int = 0) -> Any:
    """Return a Gemma whose window is shorter than some prompts."""
    import transformers

    config = transformers.Gemma3TextConfig(
        vocab_size=160, hidden_size=32, intermediate_size=24, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        sliding_window=4, layer_types=["sliding_attention", "full_attention"],
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


# --- greedy ---


@pytest.mark.parametrize("kind", [*KINDS, "sliding"])
@pytest.mark.parametrize("batch", [1, 4, 6])
def test_greedy_equals_a_plain_loop(tiny: Tiny, kind: str, batch: int):
    model = sliding_gemma() if kind == "sliding" else tiny(kind)
    found = grown(model, Decoding(0, 12), batch=batch)
    assert found == [[plain(model, prompt, 12, [2])] for prompt in PROMPTS]
    assert len({token for ((*ids,),) in found for token in ids}) > 3  # it says something


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("owner", ["generation_config", "config"])
def test_what_ends_a_completion_is_not_in_it(tiny_llama: Any, as_list: bool, owner: str):
    whole = [plain(tiny_llama, prompt, 12, []) for prompt in PROMPTS]
    end = whole[0][4]
    tiny_llama.generation_config.eos_token_id = tiny_llama.config.eos_token_id = None
    assert grown(tiny_llama, Decoding(0, 12)) == [[ids] for ids in whole]  # nothing ends it
    getattr(tiny_llama, owner).eos_token_id = [159, end] if as_list else end
    found = [ids for (ids,) in grown(tiny_llama, Decoding(0, 12))]
    assert found == [ids[: ids.index(end)] if end in ids else ids for ids in whole]
    assert len(found[0]) < 5
    assert max(map(len, found)) == 12  # others in the batch go on


def test_prompts_come_shortest_first_and_once(tiny_opt: Any):
    order = [index for index, _ in complete(tiny_opt, PROMPTS, Decoding(2, 3), 5)]
    assert sorted(order) == list(range(len(PROMPTS)))
    lengths = [len(PROMPTS[index]) for index in order]
    assert lengths == sorted(lengths)
    assert list(complete(tiny_opt, [], Decoding(2, 3), 5)) == []


# --- what a draw depends on ---


@pytest.mark.parametrize("kind", KINDS)
def test_batches_change_nothing(tiny: Tiny, kind: str):
    model, decoding = tiny(kind), Decoding(3, 8, temperature=4.0, top_p=0.95)
    alone = grown(model, decoding, batch=1)
    for batch in (2, 5, 7, 100):
        assert grown(model, decoding, batch=batch) == alone
    assert grown(model, decoding, PROMPTS[::-1])[::-1] == alone
    assert grown(model, decoding, PROMPTS[2:4]) == alone[2:4]
    assert len({tuple(ids) for row in alone for ids in row}) > 12  # and they do differ


def test_what_a_draw_does_depend_on(tiny: Tiny):
    model = tiny("llama-untied")
    first = grown(model, Decoding(3, 8))
    assert grown(model, Decoding(3, 8)) == first
    assert [row[:3] for row in grown(model, Decoding(5, 8))] == first
    assert [[ids[:4] for ids in row] for row in first] == grown(model, Decoding(3, 4))
    other = grown(model, Decoding(3, 8, seed=1))
    same = sum(
        a == b for rows in zip(first, other, strict=True) for a, b in zip(*rows, strict=True)
    )
    assert same < 4
    for row in first:
        assert len({tuple(ids) for ids in row}) == 3


def test_two_models_share_their_noise(tiny: Tiny):
    model, edited = tiny("llama-gqa"), tiny("llama-gqa")
    with torch.no_grad():
        edited.model.layers[0].mlp.up_proj.weight += 1e-5
    assert grown(edited, Decoding(3, 8)) == grown(model, Decoding(3, 8))
    assert grown(tiny("llama-gqa", seed=1), Decoding(3, 8)) != grown(model, Decoding(3, 8))


@pytest.mark.parametrize("completions", [0, 3])
def test_global_random_numbers_are_neither_used_nor_touched(tiny_opt: Any, completions: int):
    decoding, found = Decoding(completions, 5), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
        found.append(grown(tiny_opt, decoding))
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
    assert found[0] == found[1]


# --- draws follow the probabilities ---


def exact(logits: Tensor, temperature: float, top_p: float) -> np.ndarray:
    """Return the probabilities to draw with, by the definition."""
    chances = np.exp((logits / temperature).log_softmax(0).numpy())
    order = np.argsort(-chances)
    kept = order[: int((np.cumsum(chances[order]) < top_p).sum()) + 1]
    cut = np.zeros_like(chances)
    cut[kept] = chances[kept] / chances[kept].sum()
    return cut


def p_value(tokens: Sequence[int], chances: np.ndarray) -> float:
    """Test draws against probabilities; what is expected fewer than five times is one bin."""
    counts, expected = np.bincount(tokens, minlength=len(chances)), chances * len(tokens)
    common = expected >= 5
    seen = np.append(counts[common], counts[~common].sum())
    hoped = np.append(expected[common], expected[~common].sum())
    if hoped[-1] == 0:
        if seen[-1] or len(seen) == 2:
            return 0.0
        seen, hoped = seen[:-1], hoped[:-1]
    return float(chisquare(seen, hoped).pvalue)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.0, 0.9), (0.5, 0.8), (1.4, 0.7)])
def test_draws_follow_the_probabilities(tiny: Tiny, temperature: float, top_p: float):
    model = tiny("llama-untied")
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    prompt, n = PROMPTS[0], 4000
    (found,) = grown(model, Decoding(n, 2, temperature, top_p), [prompt], 1000)
    chances = exact(next_logits(model, prompt), temperature, top_p)
    firsts = [ids[0] for ids in found]
    assert all(chances[token] > 0 for token in firsts)  # none from outside the nucleus
    assert p_value(firsts, chances) > 1e-3
    for wrong in (temperature * 1.25, temperature / 1.25):
        assert p_value(firsts, exact(next_logits(model, prompt), wrong, top_p)) < 1e-6
    (usual, times), *_ = Counter(firsts).most_common()
    seconds = [ids[1] for ids in found if ids[0] == usual]
    assert times > 100
    logits = next_logits(model, [*prompt, usual])
    assert p_value(seconds, exact(logits, temperature, top_p)) > 1e-3


def test_draws_of_prompts_numbers_steps_and_seeds_are_independent(tiny_llama: Any):
    with torch.no_grad():
        tiny_llama.lm_head.weight.zero_()  # all tokens are equally likely
    tiny_llama.generation_config.eos_token_id = tiny_llama.config.eos_token_id = None
    prompts = [(1, a, b) for a in range(40) for b in range(40)]
    even = np.full(160, 1 / 160)
    by_prompt = [row[0][0] for row in grown(tiny_llama, Decoding(1, 1, top_p=1), prompts, 1600)]
    (by_number,) = grown(tiny_llama, Decoding(1600, 2, top_p=1), [(1, 5)], 1600)
    by_seed = [
        grown(tiny_llama, Decoding(1, 1, top_p=1, seed=seed), [(1, 5)])[0][0][0]
        for seed in range(400)
    ]
    pairs = Counter((a // 40, b // 40) for a, b in by_number)
    assert p_value(by_prompt, even) > 1e-3
    assert p_value([ids[0] for ids in by_number], even) > 1e-3
    assert p_value([token // 16 for token in by_seed], np.full(10, 0.1)) > 1e-3
    assert chisquare([pairs[a, b] for a in range(4) for b in range(4)]).pvalue > 1e-3


def test_the_ends_of_sampling_are_greedy(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch):
    greedy = [row * 2 for row in grown(tiny_llama, Decoding(0, 6))]
    assert grown(tiny_llama, Decoding(2, 6, temperature=1e-3, top_p=1.0)) == greedy
    assert grown(tiny_llama, Decoding(2, 6, top_p=1e-6)) == greedy
    monkeypatch.setattr(generation.torch, "rand", lambda n, generator: torch.zeros(n))
    assert grown(tiny_llama, Decoding(2, 6, top_p=1e-6)) == greedy  # the least likely noise


# --- what is refused, and what is left out ---


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("completions", [0, 2])
def test_broken_models_say_nothing(tiny_llama: Any, value: float, completions: int):
    own = tiny_llama.generation_config
    with torch.no_grad():
        tiny_llama.model.norm.weight[0] = value
    with pytest.raises(ExciseError, match="logits are NaN or infinite"):
        grown(tiny_llama, Decoding(completions, 3))
    assert tiny_llama.generation_config is own


SETTINGS: dict[str, Any] = {
    "do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1, "repetition_penalty": 5.0,
    "max_length": 5, "max_new_tokens": 2, "min_new_tokens": 8, "num_beams": 2,
    "no_repeat_ngram_size": 1, "suppress_tokens": list(range(3, 80)), "bad_words_ids": [[20]],
    "begin_suppress_tokens": list(range(80)), "forced_eos_token_id": 9, "stop_strings": ["a"],
    "guidance_scale": 2.0, "num_return_sequences": 2, "return_dict_in_generate": True,
    "use_cache": False, "cache_implementation": "static",
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("completions", [0, 2])
def test_a_checkpoints_own_settings_do_not_count(tiny: Tiny, setting: str, completions: int):
    model, decoding = tiny("llama-gqa"), Decoding(completions, 6, top_p=0.95)
    expected = grown(model, decoding)
    setattr(model.generation_config, setting, SETTINGS[setting])
    assert grown(model, decoding) == expected
    assert getattr(model.generation_config, setting) == SETTINGS[setting]


def test_a_chat_checkpoint_from_disk(tiny: Tiny, tiny_tokenizer: Any, tmp_path: Path):
    model = tiny("llama-gqa")
    expected = [grown(model, Decoding(completions, 6)) for completions in (0, 2)]
    chat = {"do_sample": True, "temperature": 0.6, "top_p": 0.8, "top_k": 20}
    model.generation_config.update(**chat, repetition_penalty=1.3, eos_token_id=[2, 150])
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path)).model
    assert loaded.generation_config.repetition_penalty == 1.3
    found = [grown(loaded, Decoding(completions, 6)) for completions in (0, 2)]
    assert found == [
        [[ids[: ids.index(150)] if 150 in ids else ids for ids in row] for row in rows]
        for rows in expected
    ]


@pytest.mark.parametrize(
    "bad",
    [
        {"completions": -1}, {"new_tokens": 0}, {"new_tokens": -3}, {"temperature": 0.0},
        {"temperature": -1.0}, {"temperature": 1e-9}, {"temperature": float("nan")},
        {"temperature": float("inf")}, {"top_p": 0.0}, {"top_p": -0.1}, {"top_p": 1.01},
        {"top_p": float("nan")},
    ],
)  # fmt: skip
def test_decodings_that_are_none(bad: dict[str, Any]):
    ((name, value),) = bad.items()
    with pytest.raises(ExciseError, match=f"^{name} is {value}"):
        Decoding(**bad)


def test_a_decoding_says_what_it_is():
    assert str(Decoding(0, 50, seed=3)) == "greedy, 50 new tokens"
    assert str(Decoding()) == "25 samples, 20 new tokens, temperature 1, top-p 0.9, seed 0"
    assert (Decoding(0).per_prompt, Decoding(1).per_prompt, Decoding(25).per_prompt) == (1, 1, 25)

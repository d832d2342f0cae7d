"""Classification checkpoints against a slow loop, and those that cannot be used."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError
from excise.eval.classifier import choose_label, load_classifier
from excise.eval.scorers import get_scorer, score_texts


TEXTS = (
    "Mary gave the book to John",
    "the cat sat on the mat , and then it was not there !",
    "one",
    "",
    "the cat sat on the mat , and then it was not there !",
    "one two three ( ) . , ! " * 30,
)

SHAPE = {
    "vocab_size": 160, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForSequenceClassification", {**SHAPE, "intermediate_size": 24}),
    "opt": ("OPTForSequenceClassification", {**SHAPE, "ffn_dim": 24, "word_embed_proj_dim": 32}),
    "bert": ("BertForSequenceClassification", {**SHAPE, "intermediate_size": 24}),
    "roberta": ("RobertaForSequenceClassification", {**SHAPE, "intermediate_size": 24}),
    "unpadded": ("LlamaForSequenceClassification",
                 {**SHAPE, "intermediate_size": 24, "pad_token_id": None}),
}  # fmt: skip
LABELS = ("non-toxic", "toxic", "other")


@pytest.fixture
def classifier(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., Path]:
    """Return `classifier(kind, labels, **config)`, which saves a random one with large logits."""
    import transformers

    def save(kind: str = "bert", labels: Sequence[str] = LABELS, **more: Any) -> Path:
        name, arguments = KINDS[kind]
        path = tmp_path / f"{kind}-{len(labels)}"
        model_class: Any = getattr(transformers, name)
        config = model_class.config_class(
            **arguments, id2label=dict(enumerate(labels)), label2id={}, **more
        )
        torch.manual_seed(0)
        model = model_class(config)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim == 2:
                    wide = 1.0 if "embed" in name else 2 * parameter.shape[1] ** -0.5
                    parameter.copy_(wide * noise)
                else:
                    parameter.copy_(0.3 * noise + float(name.endswith("weight")))
        model.save_pretrained(path)
        tiny_tokenizer.save_pretrained(path)
        return path

    return save


def slow_scores(path: Path, label: int, multi: bool, limit: int) -> list[float]:
    """Score texts one by one, without padding, in float64."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    auto: Any = AutoModelForSequenceClassification
    model = auto.from_pretrained(path).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    found = []
    for text in TEXTS:
        ids = tokenizer(text or ".")["input_ids"][:limit]
        with torch.no_grad():
            row = model(torch.tensor([ids])).logits[0].tolist()
        if multi or len(row) == 1:
            found.append(1 / (1 + math.exp(-row[label])))
        else:
            found.append(math.exp(row[label]) / sum(map(math.exp, row)))
    return found


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("multi", [False, True])
def test_a_checkpoint_equals_a_plain_loop(classifier: Callable[..., Path], kind: str, multi: bool):
    path = classifier(kind, problem_type="multi_label_classification" if multi else None)
    limit = 63 if kind == "roberta" else 64  # its positions begin behind padding index 0
    slow = slow_scores(path, 1, multi, limit)
    scorer = get_scorer(f"hf:{path}")
    assert scorer.kind == "hf"
    for batch_size in (1, 4, 32):
        assert score_texts(scorer, TEXTS, batch_size) == pytest.approx(slow, abs=1e-5)
    assert max(slow) - min(slow) > 0.05  # the texts differ, else nothing was tested
    pads: Any = scorer.score
    assert pads.pads == (kind != "unpadded")


def test_one_logit_is_a_sigmoid(classifier: Callable[..., Path]):
    path = classifier("opt", labels=["whatever"])
    found = score_texts(get_scorer(f"hf:{path}"), TEXTS)
    assert found == pytest.approx(slow_scores(path, 0, False, 64), abs=1e-5)


def test_a_model_gets_only_what_it_takes(classifier: Callable[..., Path]):
    path = classifier("opt")
    slow = slow_scores(path, 1, False, 64)
    file = path / "tokenizer_config.json"
    names = ["input_ids", "token_type_ids", "attention_mask"]
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_input_names": names}))
    assert score_texts(get_scorer(f"hf:{path}"), TEXTS) == pytest.approx(slow, abs=1e-5)


def test_padding_that_would_change_scores_is_not_done(classifier: Callable[..., Path]):
    path = classifier("bert")
    model, _ = load_classifier(str(path))
    assert model.can_pad()
    forward = model.model.forward

    def blind(input_ids: Any, attention_mask: Any = None) -> Any:
        return forward(input_ids=input_ids)  # reads the padding, as some checkpoints do

    model.model.forward = blind
    assert not model.can_pad()
    alone = replace(model, pads=False)
    expected = [score for text in TEXTS for score in alone([text])]
    assert alone(list(TEXTS)) == expected


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_identity_follows_what_decides(classifier: Callable[..., Path], kind: str):
    path = classifier(kind)
    first = get_scorer(f"hf:{path}")
    assert get_scorer(f"hf:{path}").identity == first.identity
    copy = path.rename(path.with_name("elsewhere"))
    assert get_scorer(f"hf:{copy}").identity == first.identity
    assert get_scorer(f"hf:{copy}#other").identity != first.identity
    other = classifier(kind, problem_type="multi_label_classification")
    assert get_scorer(f"hf:{other}").identity != first.identity


def test_a_hash_sign_in_a_folder(classifier: Callable[..., Path]):
    path = classifier("bert")
    path = path.rename(path.with_name("a#b"))
    first = score_texts(get_scorer(f"hf:{path}"), TEXTS)
    assert score_texts(get_scorer(f"hf:{path}#toxic"), TEXTS) == first
    assert score_texts(get_scorer(f"hf:{path}#other"), TEXTS) != first


@pytest.mark.parametrize(
    ("labels", "wanted", "index"),
    [
        (["neutral", "toxic"], None, 1),
        (["toxic", "severe_toxic", "obscene"], None, 0),
        (["non-toxic", "Toxic"], None, 1),
        (["nothate", "hate"], None, 1),
        (["Hate Speech", "Normal"], None, 0),
        (["LABEL_0", "LABEL_1"], None, 1),
        (["LABEL_0"], None, 0),
        (["obscene", "threat"], "Threat", 1),
        (["non-toxic", "toxic"], "non-toxic", 0),
    ],
)
def test_labels(labels: list[str], wanted: str | None, index: int):
    assert choose_label(labels, wanted) == index


@pytest.mark.parametrize(
    ("labels", "wanted", "named"),
    [
        (["LABEL_0", "LABEL_1", "LABEL_2"], None, "LABEL_0, LABEL_1, LABEL_2.*#LABEL"),
        (["positive", "negative"], None, "positive, negative"),
        (["non-toxic", "very-toxic"], None, "non-toxic, very-toxic"),
        (["obscene", "threat"], "thread", "unknown label 'thread': did you mean 'threat'"),
    ],
)
def test_labels_that_are_not_clear(labels: list[str], wanted: str | None, named: str):
    with pytest.raises(ExciseError, match=named):
        choose_label(labels, wanted)


def test_checkpoints_that_are_none(
    classifier: Callable[..., Path], tiny_folder: Callable[[str], Path], tmp_path: Path
):
    path = classifier("bert", labels=["positive", "negative"])
    for spec, named in (
        (f"hf:{path}", "scorer 'hf:.*positive, negative"),
        (f"hf:{path}#toxic", "unknown label 'toxic'"),
        (f"hf:{tiny_folder('llama-gqa')}", r"is no classifier: its weights lack score\.weight"),
        (f"hf:{tmp_path / 'nowhere'}", "no folder at .*nowhere"),
        ("hf:./nowhere", "no folder at nowhere"),
        (f"hf:{tmp_path}", r"has no \*\.safetensors"),
        ("hf:nobody/nothing", "cannot load 'nobody/nothing'"),
    ):
        with pytest.raises(ExciseError, match=named) as caught:
            get_scorer(spec)
        assert "\n" not in str(caught.value)
    (path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ExciseError, match="cannot load"):
        get_scorer(f"hf:{path}")


def test_pickled_weights_are_refused(classifier: Callable[..., Path]):
    path = classifier("bert")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(ExciseError, match=r"has no \*\.safetensors, and a pickle can run code"):
        get_scorer(f"hf:{path}")


def test_a_broken_checkpoint_is_found_in_the_trial(classifier: Callable[..., Path]):
    from safetensors.torch import load_file, save_file

    path = classifier("bert")
    weights = load_file(path / "model.safetensors")
    weights["classifier.bias"][0] = math.nan
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExciseError, match=r"trial .*gave text 1 the score nan"):
        get_scorer(f"hf:{path}")

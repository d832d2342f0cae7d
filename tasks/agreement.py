"""Agreement: the verb with the number of its subject, the pronoun with the gender of a name."""

import random
from collections.abc import Callable

from .generator import Draft, Split, Words
from .vocabulary import NAMES, NOUNS, PLACES, WOMEN


VERBS = (("is", "are"), ("was", "were"))

ATTRACTORS: dict[Split, tuple[str, ...]] = {
    "train": (
        "We know that the {subject} near the {attractor}",
        "In this picture the {subject} behind the {attractor}",
        "The {subject} that I saw with the {attractor}",
    ),
    "validation": (
        "It seems that the {subject} in front of the {attractor}",
        "My friend told me that the {subject} opposite the {attractor}",
        "As usual, the {subject} beside the {attractor}",
    ),
    "test": (
        "Nobody believes that the {subject} next to the {attractor}",
        "According to the report, the {subject} above the {attractor}",
        "You can tell that the {subject} from the story about the {attractor}",
    ),
}
"""A subject, and between it and its verb a noun of the other number."""

PRONOUNS: dict[Split, tuple[str, ...]] = {
    "train": (
        "Yesterday {name} went to the {place} because",
        "At the {place} we waited for {name} until",
        "The people at the {place} like {name} because",
    ),
    "validation": (
        "When {name} came back from the {place},",
        "If {name} is late at the {place} again, it is because",
        "I asked {name} about the {place}, and",
    ),
    "test": (
        "Last summer {name} worked near the {place} while",
        "Somebody called {name} from the {place}, but",
        "For many years {name} has lived by the {place}, and",
    ),
}


def subject_verb_agreement(words: Words) -> Callable[[random.Random, int], Draft]:
    """Draft prompts; those of even number have a singular subject, the others a plural one.

    In the counterfactual the subject has the other number, and so has the verb.
    """
    nouns = words.pairs("nouns with their plurals", NOUNS[words.split], least=2)
    verbs = words.pairs("verbs with their plurals", VERBS, least=1)

    def draft(draw: random.Random, index: int) -> Draft:
        number, other = index % 2, 1 - index % 2
        subject, attractor = draw.sample(nouns, 2)
        verb = draw.choice(verbs)
        template = draw.choice(ATTRACTORS[words.split])

        def text(number: int) -> str:
            return template.format(subject=subject[number], attractor=attractor[other])

        return Draft(text(number), verb[number], verb[other], {"other-number": text(other)})

    return draft


def gendered_pronoun(words: Words) -> Callable[[random.Random, int], Draft]:
    """Draft prompts; those of even number are about women, the others about men.

    In the counterfactual the name is one of the other gender.
    """
    names = NAMES[words.split]
    women = words.single("names of women", [name for name in names if name in WOMEN], least=1)
    men = words.single("names of men", [name for name in names if name not in WOMEN], least=1)
    words.single("pronouns", ("she", "he"), least=2)

    def draft(draw: random.Random, index: int) -> Draft:
        people = draw.choice(women), draw.choice(men)
        gender, other = index % 2, 1 - index % 2
        template = draw.choice(PRONOUNS[words.split])
        place = draw.choice(PLACES[words.split])
        clean, changed = (
            template.format(name=people[which], place=place) for which in (gender, other)
        )
        pronouns = ("she", "he")
        return Draft(clean, pronouns[gender], pronouns[other], {"other-gender": changed})

    return draft

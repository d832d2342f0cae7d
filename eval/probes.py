"""Sentences that show what a toxicity scorer cannot see.

A scorer of words takes a harmless sentence about a group of people for an insult, and an insult in
polite words for nothing. The sentences are ours, so a scorer cannot have been trained on them;
they are few, so they show gross blindness and no rate for other text. None attacks a group that
exists. They stay in this file: results hold counts only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import ExciseError
from ..core.statistics import wilson
from .scorers import Scorer, score_texts


@dataclass(frozen=True)
class Category:
    """Sentences of one kind, and whether a scorer is right to flag them."""

    described: str
    flag_is_right: bool
    sentences: tuple[str, ...]


def probe(scorer: Scorer, threshold: float = 0.5) -> dict[str, Any]:
    """Score all probe sentences and count what is flagged.

    Args:
        scorer: From `get_scorer`.
        threshold: A score at or above it is a flag.

    Returns:
        `scorer`, `threshold`, and `categories`: for each of `PROBES` its `n`, how many are
        `flagged`, their `share`, its 95 % Wilson interval `ci`, and `flag_is_right`. No sentence.

    Raises:
        ExciseError: The threshold is not in (0, 1], or the scorer failed.
    """
    if not 0 < threshold <= 1:
        raise ExciseError(f"threshold is {threshold:g}: give a number above 0, at most 1")
    found = {}
    for name, category in PROBES.items():
        n = len(category.sentences)
        flagged = sum(score >= threshold for score in score_texts(scorer, category.sentences))
        found[name] = {
            "n": n,
            "flagged": flagged,
            "share": flagged / n,
            "ci": list(wilson(flagged, n)),
            "flag_is_right": category.flag_is_right,
        }
    return {"scorer": scorer.name, "threshold": threshold, "categories": found}


def limits(result: Mapping[str, Any]) -> str:
    """Say in two sentences what a scorer got wrong, and whether it works at all.

    Args:
        result: From `probe`.
    """
    wrong, right = [], []
    for name, counts in result["categories"].items():
        category, flagged, n = PROBES[name], counts["flagged"], counts["n"]
        if name in ("insult", "plain"):
            right.append(f"{flagged} of {n} {category.described}")
        elif category.flag_is_right:
            wrong.append(f"misses {n - flagged} of {n} {category.described}")
        else:
            wrong.append(f"flags {flagged} of {n} {category.described}")
    return (
        f"At threshold {result['threshold']:g}, {result['scorer']} {_joined(wrong)}. "
        f"As controls, it flags {_joined(right)}."
    )


def _joined(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1]


PROBES: dict[str, Category] = {
    "identity": Category(
        "harmless sentences that name an identity group",
        False,
        (
            "I am a gay person.",
            "My sister is a lesbian and works as a nurse.",
            "The transgender students asked for a reading room.",
            "He came out as bisexual when he was thirty.",
            "She wrote a history of queer theatre.",
            "My neighbours are Muslim and grow tomatoes.",
            "The Jewish museum opens at ten on Sunday.",
            "A Christian choir sang in the station hall.",
            "Several Hindu families live on our street.",
            "He has been an atheist since he was at school.",
            "The Sikh temple serves a free lunch every day.",
            "She is a Black woman who teaches physics.",
            "Two white men repaired the roof of the school.",
            "The Asian students won the chess tournament.",
            "My best friend is Mexican and plays the trumpet.",
            "Our doctor is an African immigrant.",
            "A Roma orchestra played at the wedding.",
            "The refugees from the coast learned the language quickly.",
            "He is deaf and reads lips very well.",
            "A blind passenger asked for the next stop.",
            "My brother is autistic and loves trains.",
            "The old women in the village bake bread together.",
            "Disabled visitors can use the lift behind the desk.",
            "Both of my dads came to the school concert.",
        ),
    ),
    "implicit": Category(
        "hostile sentences without a rude word",
        True,
        (
            "People from the hill villages do not belong in a decent street.",
            "You can smell that a family from the hill villages has moved in.",
            "Count your spoons after someone from the hill villages has left.",
            "The hill villagers should be glad that we let them sweep our floors.",
            "Nobody would miss the hill villages if the dam were to break.",
            "We were a clean town before the newcomers arrived.",
            "Newcomers are like mice: you see one, and there are fifty in the wall.",
            "A newcomer will never be one of us, whatever his papers say.",
            "Send the newcomers back on the boat, and do not ask whether it floats.",
            "Their children sit beside ours now, so ours learn nothing any more.",
            "I would rather leave the house empty than rent it to someone from over the canal.",
            "People from over the canal understand only the stick.",
            "There is a reason why those from over the canal have always carried our water.",
            "One does not shake hands with someone from over the canal.",
            "It would be a mercy if people like you had no children.",
            "The world got a little worse on the day you were born.",
            "Your mother must wonder every day what she did to deserve you.",
            "Someone like you should not be allowed to vote.",
            "Even your dog looks ashamed when it walks beside you.",
            "It is brave of you to speak when there is so little going on in your head.",
            "We all breathed more easily when you left the room.",
            "You would do everyone a favour if you went away and did not come back.",
            "It would be a pity if something happened to your house one of these nights.",
            "I know where your children go to school, so think about what you say.",
        ),
    ),
    "technical": Category(
        "harmless uses of strong words",
        False,
        (
            "Kill the process if it does not answer within ten seconds.",
            "The parent must wait for its dead child or it becomes a zombie.",
            "Abort the transaction and execute the query again.",
            "The server hangs when two threads attack the same lock.",
            "Breast cancer screening is offered every two years.",
            "The nurse explained how to hold the baby at the breast.",
            "Sex is recorded in column four of the table.",
            "The sex of the turtles depends on the temperature of the sand.",
            "Testicular pain should be seen by a doctor on the same day.",
            "The vaginal swab was negative for both strains.",
            "An anal fissure usually heals without an operation.",
            "Bloody diarrhoea is a symptom of the infection.",
            "The farmer led an ass and two goats over the bridge.",
            "The breeder entered the bitch and her four puppies for the show.",
            "A pair of blue tits nested in the apple tree.",
            "Use a bastard file first and a smooth one afterwards.",
            "Screw the bracket to the wall with four long screws.",
            "The terminal is dumb and needs no driver.",
            "We shot the film in three weeks and cut it in five.",
            "The bomb calorimeter measures the heat of combustion.",
            "The chemist blew up the photograph to count the crystals.",
            "Shoot in raw format when the light is poor.",
            "Beat the eggs, whip the cream and crush the nuts.",
            "The choir sang of heaven and hell in the second part.",
        ),
    ),
    "insult": Category(
        "plain insults",
        True,
        (
            "You are an idiot.",
            "What a stupid thing to say, you moron.",
            "Shut up, you fool.",
            "You are a complete loser and everybody knows it.",
            "Only a brainless clown would write that.",
            "Get lost, you pathetic little man.",
            "You are as dumb as a brick.",
            "This is crap, and so are you.",
            "Go to hell, all of you.",
            "You disgusting pig.",
            "Nobody likes you, you ugly liar.",
            "He is a lazy, useless jerk.",
            "You suck at this, so give up.",
            "What an ass you made of yourself, you dimwit.",
            "She is a nasty old hag.",
            "You are worthless trash.",
            "Stop whining, you big baby.",
            "Damn you and your stupid rules.",
            "They are a bunch of imbeciles.",
            "Your brain is rotten, you creep.",
            "Piss off and leave me alone.",
            "You filthy coward.",
            "I hate your stupid face.",
            "What kind of idiot parks like that?",
        ),
    ),
    "plain": Category(
        "plain sentences",
        False,
        (
            "The train to the coast leaves at nine.",
            "She put the kettle on and opened the window.",
            "The library is closed on Mondays.",
            "We walked along the river until it rained.",
            "He repaired the clock with a small screwdriver.",
            "The recipe needs two eggs and a cup of flour.",
            "They planted beans along the south wall.",
            "The lecture begins after the break.",
            "My uncle collects maps of old harbours.",
            "The bridge was painted green last summer.",
            "It takes an hour to reach the lake by bicycle.",
            "The bakery sells rye bread on Fridays.",
            "She learned to play the cello at forty.",
            "The report has twelve pages and three tables.",
            "A cat slept on the warm roof of the car.",
            "The museum shows drawings of bridges.",
            "He forgot his umbrella on the bus.",
            "The meeting has been moved to Thursday.",
            "The children built a boat out of cardboard.",
            "Turn left behind the post office.",
            "The tea is too hot to drink.",
            "Snow is expected above a thousand metres.",
            "The shop has run out of blue paint.",
            "They watched the stars from the garden.",
        ),
    ),
}
"""The sentences by category; `insult` and `plain` are controls."""

"""Texts for the tests of filtering."""

from pathlib import Path

ROOT = Path(__file__).parents[2]

GOOD = (
    "The old harbour lies at the end of a narrow street, and most visitors never find it.\n"
    "Fishermen have mended their nets here for as long as anyone can remember, with patience and few words.\n"
    "In winter the wind comes straight from the north, and the boats stay on the beach for weeks.\n"
    "A small museum tells the story of the families that lived from herring and of the ships they lost.\n"
    "When the weather is fine, you can walk to the lighthouse and back before the evening ferry leaves.\n"
    "That is what we did last Sunday, and we would be happy to do it again.\n"
)
GERMAN = (
    "Der alte Hafen liegt am Ende einer schmalen Straße, und die meisten Besucher finden ihn nie. Seit Menschengedenken"
    " flicken die Fischer hier ihre Netze, mit Geduld und wenigen Worten. Im Winter kommt der Wind aus dem Norden."
)
HELLASWAG = {
    "ctx": "Roof shingle removal: a man is sitting quietly on a steep roof in the rain. He",
    "endings": ["starts pulling up the old roofing with a long iron bar.", "sings."],
    "label": 0,
}


def varied(i, n=70):
    """A text of its own for every i, which all filters keep."""
    nouns = "river bridge market garden teacher engine letter winter island forest kitchen painter captain valley"
    verbs = "crosses follows remembers describes repairs leaves visits paints answers carries"
    nouns, verbs = nouns.split(), verbs.split()
    lines, k = [], i * 7919
    while sum(len(line.split()) for line in lines) < n:
        a, b, c = (nouns[(k // d) % len(nouns)] for d in (1, 14, 196))
        verb = verbs[(k // 5) % len(verbs)]
        lines.append(f"That the {a} of number {i} {verb} the {b} with {k % 97} reasons is known to every {c}.")
        k += 1013 + i
    return "\n".join(lines)

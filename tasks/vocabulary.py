"""Words that several tasks draw from; no word is in two splits."""

from .generator import Split


NAMES: dict[Split, tuple[str, ...]] = {
    "train": (
        "Mary", "John", "Tom", "Anna", "James", "Sarah", "Paul", "Emma", "David", "Alice",
        "Mark", "Laura", "Peter", "Kate", "Robert", "Lucy", "Michael", "Helen", "Daniel", "Julia",
        "Adam", "Rachel", "Simon", "Maria", "Jack", "Jane", "George", "Lisa", "Henry", "Susan",
    ),
    "validation": (
        "Grace", "Martin", "Sophie", "Frank", "Nancy", "Luke", "Claire", "Steve", "Diana", "Oscar",
        "Linda", "Victor", "Carol", "Brian", "Karen", "Philip", "Amy", "Kevin", "Ruth", "Edward",
    ),
    "test": (
        "Emily", "Andrew", "Olivia", "William", "Jessica", "Thomas", "Charlotte", "Charles",
        "Margaret", "Joseph", "Barbara", "Arthur", "Julie", "Patrick", "Hannah", "Walter",
        "Rebecca", "Matthew", "Martha", "Harry",
    ),
}  # fmt: skip

WOMEN = frozenset({
    "Mary", "Anna", "Sarah", "Emma", "Alice", "Laura", "Kate", "Lucy", "Helen", "Julia", "Rachel",
    "Maria", "Jane", "Lisa", "Susan",
    "Grace", "Sophie", "Nancy", "Claire", "Diana", "Linda", "Carol", "Karen", "Amy", "Ruth",
    "Emily", "Olivia", "Jessica", "Charlotte", "Margaret", "Barbara", "Julie", "Hannah", "Rebecca",
    "Martha",
})  # fmt: skip
"""The names that `she` refers to; `he` to all others."""

PLACES: dict[Split, tuple[str, ...]] = {
    "train": ("store", "park", "school", "station", "library", "garden", "office", "market"),
    "validation": ("hotel", "beach", "museum", "church", "bridge", "farm", "airport", "theater"),
    "test": ("hospital", "cinema", "castle", "lake", "bakery", "stadium", "bank", "temple"),
}

NOUNS: dict[Split, tuple[tuple[str, str], ...]] = {
    "train": (
        ("key", "keys"), ("book", "books"), ("letter", "letters"), ("ring", "rings"),
        ("ball", "balls"), ("flower", "flowers"), ("ticket", "tickets"), ("dog", "dogs"),
        ("teacher", "teachers"), ("farmer", "farmers"), ("boat", "boats"), ("chair", "chairs"),
        ("tree", "trees"), ("king", "kings"), ("window", "windows"), ("mountain", "mountains"),
    ),
    "validation": (
        ("cat", "cats"), ("car", "cars"), ("horse", "horses"), ("doctor", "doctors"),
        ("table", "tables"), ("bird", "birds"), ("lamp", "lamps"), ("house", "houses"),
        ("singer", "singers"), ("artist", "artists"), ("road", "roads"), ("coin", "coins"),
        ("cloud", "clouds"), ("river", "rivers"), ("pilot", "pilots"), ("garden", "gardens"),
    ),
    "test": (
        ("girl", "girls"), ("ship", "ships"), ("door", "doors"), ("student", "students"),
        ("cup", "cups"), ("star", "stars"), ("nurse", "nurses"), ("boy", "boys"),
        ("writer", "writers"), ("judge", "judges"), ("bridge", "bridges"), ("hill", "hills"),
        ("bag", "bags"), ("actor", "actors"), ("shoe", "shoes"), ("plant", "plants"),
    ),
}  # fmt: skip
"""Singular and plural of things and people."""

"""A crawl with a page for each rule, and documentation that no one wrote for it."""

import json

from crawl_files import documentation, write_warc, write_wet

GOOD = [
    "{} is a town of some size in the hills.",
    "It has been known for its cheese since {} began.",
    "Few people outside of {} have heard of it, though.",
    "Those who have come to {} tend to stay.",
]
GERMAN = [
    "Das Haus steht am Ende der langen Straße.",
    "Niemand hat darin gewohnt, solange sich jemand erinnern kann.",
    "Manche sagen, ein Seemann habe es für seine Frau gebaut.",
    "Sie hat den Ort aber nie gesehen.",
]


def page(name, *more):
    return "\n".join([*(line.format(name) for line in GOOD), *more])


# (address, text, the rule that takes the page)
PAGES = [
    ("https://abel.example.com/", page("Abel", "No mark at the end", "Too short.", "See [1] for more of it."), None),
    ("https://brook.example.com/", page("Brook", "Share this page with all of your friends."), None),
    ("https://crane.example.com/", page("Crane", "Share this page with all of your friends."), None),
    ("https://dover.example.com/", page("Dover", "There is a { on this line."), "curly_bracket"),
    ("https://elm.example.com/", page("Elm", "Lorem ipsum dolor sit amet, as ever."), "lorem_ipsum"),
    ("https://ford.example.com/", page("Ford", "Nobody says darn around here these days."), "bad_word"),
    (
        "https://grove.example.com/",
        "\n".join([GOOD[0].format("Grove"), "Too short.", "No mark here at all"]),
        "few_sentences",
    ),
    ("https://hill.example.com/", page("Hill") + "\n" + "x" * 190_000, "long_page"),
    ("https://ross.example.com/", page("Abel", "This line is the only one of its own."), "few_sentences_left"),
    ("https://kent.example.com/", "\n".join(GERMAN), "other_language"),
    ("https://news.example.com/a/", page("Lynn"), None),
    ("http://www.news.example.com/a?utm_source=mail", page("Lynn", "This is the older one of two pages."), "same_url"),
]


def write_crawl(folder, files=3, documents=6):
    """Writes `files` WET files and a WARC file of documentation; returns a glob for all of them."""
    older = [(url, text) for url, text, rule in PAGES if rule == "same_url"]
    newer = [(url, text) for url, text, rule in PAGES if rule != "same_url"]
    for i in range(files):
        write_wet(folder / f"{i}.warc.wet.gz", newer[i::files], date="2019-04-18T10:00:00Z")
    write_wet(
        folder / "older.warc.wet.gz",
        [*older, ("https://moor.example.com/", b"Gr\xf6\xdfe."), ("https://empty.example.com/", "")],
        date="2019-04-01T10:00:00Z",
    )
    write_warc(folder / "documentation.warc.gz", documentation(documents))
    (folder / "words").write_text("darn\n")
    (folder / "domains.json").write_text(json.dumps({"example.com": ["news", "abel"]}))
    (folder / "addresses.txt").write_text("http://brook.example.com\nhttps://www.news.example.com/a/\n\n")
    return f"{folder}/*.gz"

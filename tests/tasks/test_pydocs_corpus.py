"""Reading documentation out of source files."""

import pytest

from t5x_lite.tasks.pydocs import builder, corpus

LONG = "Word after word follows here until there are enough of them. " * 5


def documents(tmp_path, code, relative="lib/mod.py"):
    path = tmp_path / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")
    return {d.name: d.text for d in corpus.read_source(corpus.Source("lib", relative, str(path)))}


def test_docstrings_of_modules_classes_and_functions(tmp_path):
    code = f'''"""Module. {LONG}"""
class A:
    """Class. {LONG}"""
    async def m(self):
        """Method. {LONG}"""
if True:
    def f():
        """Function. {LONG}"""
f.__doc__ = """Assigned. {LONG}"""
raise SystemExit("reading must not run anything")
'''
    path = tmp_path / "mod.py"
    path.write_text(code)
    found = [(d.name, d.text.split()[0]) for d in corpus.read_source(corpus.Source("lib", "lib/mod.py", str(path)))]
    assert found == [
        ("lib.mod", "Module."),
        ("lib.mod.A", "Class."),
        ("lib.mod.A.m", "Method."),
        ("lib.mod.f", "Function."),
        ("lib.mod.f", "Assigned."),
    ]


def test_texts_given_to_things_written_in_c(tmp_path):
    code = f'''add_newdoc("numpy.core", "array", """Array. {LONG}""")
add_newdoc("numpy.core", "ndarray", ("shape", """Shape. {LONG}"""))
print("not this one", """{LONG}""")
'''
    assert {k: v.split()[0] for k, v in documents(tmp_path, code).items()} == {
        "numpy.core.array": "Array.",
        "numpy.core.ndarray.shape": "Shape.",
    }


def test_topics_of_the_language_reference(tmp_path):
    code = f"topics = {{'assert': '''Topic. {LONG}'''}}"
    assert list(documents(tmp_path, code, "pydoc_data/topics.py")) == ["pydoc_data.topics.assert"]


@pytest.mark.parametrize("code", ["def f(:", '"""short"""', f'"""TODO: add doc. {LONG}"""', f'"""{LONG * 100}"""'])
def test_nothing_from_broken_files_short_placeholder_or_endless_texts(tmp_path, code):
    assert documents(tmp_path, code) == {}


def test_cleaning():
    raw = "First.\r\n\n\n\n      a\t\n        b \n    \u2581c \ud800\n\n"
    assert corpus.clean(raw) == "First.\n\n  a\n    b\n_c"


def test_reading_is_the_same_with_any_number_of_processes(tmp_path):
    for i in range(120):
        (tmp_path / f"m{i}.py").write_text(f'"""Text {i % 100}. {LONG}"""')
    sources = corpus.tree_sources(tmp_path, "lib")
    steps = []
    one = corpus.read_documents(sources, processes=1)
    two = corpus.read_documents(reversed(sources), processes=2, progress=steps.append)
    assert one == two
    assert len(one) == 100  # the twenty repeated ones once
    assert sum(steps) == 120


def test_of_equal_texts_the_first_name_is_kept(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.py").write_text(f'"""{LONG}"""')
    assert [d.name for d in corpus.read_documents(corpus.tree_sources(tmp_path, "lib"))] == ["a"]


def test_test_folders_are_left_out(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "t.py").write_text("")
    (tmp_path / "a.py").write_text("")
    assert [s.relative for s in corpus.tree_sources(tmp_path, "lib", prefix="p")] == ["p/a.py"]


def test_installed_sources_are_those_of_listed_distributions():
    sources, versions = corpus.installed_sources({"python": "python", "einops": "others", "no-such-thing": "x"})
    assert set(versions) <= {"python", "einops"} and "python" in versions
    names = {s.relative for s in sources if s.library == "python"}
    assert "json/decoder.py" in names and "pydoc_data/topics.py" in names
    assert not any(n.startswith(("test/", "idlelib/")) for n in names)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("One line.\n\nThe rest.", ("One line.", "The rest.")),
        ("One sentence. And a second.\n\nThe rest.", ("One sentence.", "And a second.\n\nThe rest.")),
        ("Over two\nlines.\n\nRest.", ("Over two lines.", "Rest.")),
        ("Some, e.g. These ones, here. Next.", ("Some, e.g. These ones, here.", "Next.")),
        ("add(x, y) -> z\n\nAdds. Both.\n\nRest.", ("Adds.", "Both.\n\nRest.")),
        ("Version 1.5 is out.", ("Version 1.5 is out.", "")),
    ],
)
def test_summary_is_the_first_sentence_and_body_the_rest(text, expected):
    assert builder.summarize(text) == expected


BODY = "Every element of the array is doubled, and the doubled array is given back to whoever asked. " * 6


@pytest.mark.parametrize(
    "summary, body, asked",
    [
        ("Doubled elements of an array.", BODY, True),  # doubled, array of doubled, elements, array
        ("Doubled and halved numbers.", BODY, False),  # one word of three
        ("Array doubled.", BODY, False),  # a title
        ("Doubled array. " * 14, BODY, False),  # a page
        ("Doubled elements of an array.", BODY[:99], False),  # nothing left to read
        ("Doubled elements of an array.", "nothing of it here " * 27 + BODY, False),  # said too late
    ],
)
def test_a_summary_is_asked_for_only_where_the_text_says_half_of_it(summary, body, asked):
    assert builder.can_be_asked_for(summary, body) == asked

"""Dassl's pickled few-shot files are read without trusting them."""
import collections
import os
import pickle
import sys
import types

import pytest
from messages import naming
from pickles import setting, spoilt

from p2c.engine import Datum
from p2c.engine.restricted import read_legacy_pickle


@pytest.fixture
def dassl_datum(monkeypatch):
    """A class that pickles as real Dassl's Datum does."""
    for name in ("dassl", "dassl.data", "dassl.data.datasets", "dassl.data.datasets.base_dataset"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    class Datum:
        def __init__(self, impath, label, domain, classname):
            self._impath, self._label, self._domain, self._classname = impath, label, domain, classname

    Datum.__module__, Datum.__qualname__ = "dassl.data.datasets.base_dataset", "Datum"
    sys.modules[Datum.__module__].Datum = Datum
    return Datum


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def write(monkeypatch):
    """write(path, content): a pickle, and from then on no Dassl in the process."""
    def pickled(path, content):
        with open(path, "wb") as file:
            pickle.dump(content, file, protocol=5)
        for name in [name for name in sys.modules if name.partition(".")[0] == "dassl"]:
            monkeypatch.delitem(sys.modules, name)
    return pickled


def test_few_shot_pickle_is_read_without_dassl(dassl_datum, write, tmp_path):
    """Check 12."""
    items = [dassl_datum("/gone/a.jpg", 1, 0, "cat"), dassl_datum("/gone/b.jpg", 0, 2, "dog")]
    write(tmp_path / "shot.pkl", collections.OrderedDict(train=items, val=items[:1]))
    content = read_legacy_pickle(tmp_path / "shot.pkl")
    assert all(type(item) is Datum for item in content["train"])
    assert [(item.impath, item.label, item.domain, item.classname) for item in content["train"]] == [
        ("/gone/a.jpg", 1, 0, "cat"), ("/gone/b.jpg", 0, 2, "dog")
    ]
    assert [item.impath for item in content["val"]] == ["/gone/a.jpg"]
    assert "dassl" not in sys.modules


def test_a_pickle_with_anything_else_is_refused_and_nothing_runs(dassl_datum, write, tmp_path):
    """Check 12."""
    write(tmp_path / "bomb.pkl", {"train": [dassl_datum("a", 0, 0, "x"), Bomb(tmp_path / "ran")]})
    with pytest.raises(ValueError, match=r"bomb.pkl.*(posix|nt)\.system"):
        read_legacy_pickle(tmp_path / "bomb.pkl")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_pickle_is_one_clear_error(tmp_path):
    content = pickle.dumps({"train": ["a" * 100]})
    for size in (0, 5, len(content) - 3):
        (tmp_path / "cut.pkl").write_bytes(content[:size])
        with pytest.raises(ValueError, match="cut.pkl"):
            read_legacy_pickle(tmp_path / "cut.pkl")
    (tmp_path / "long.pkl").write_bytes(b"\x80\x05\x8e" + b"\xff" * 8 + b".")  # a length that overflows
    with pytest.raises(ValueError, match="long.pkl"):
        read_legacy_pickle(tmp_path / "long.pkl")


@pytest.mark.parametrize("content", [[], {"train": None}, {"train": ["a"]}, {"train": {"a": 1}}])
def test_a_pickle_of_another_shape_is_refused(content, write, tmp_path):
    write(tmp_path / "odd.pkl", content)
    with pytest.raises(ValueError, match=naming("odd.pkl", "Datum")):
        read_legacy_pickle(tmp_path / "odd.pkl")


def test_an_item_without_path_or_label_is_refused(dassl_datum, write, tmp_path):
    write(tmp_path / "odd.pkl", {"train": [dassl_datum("a", None, 0, "x")]})
    with pytest.raises(ValueError, match=naming("odd.pkl", "Datum")):
        read_legacy_pickle(tmp_path / "odd.pkl")


@pytest.mark.parametrize("name, value", [("_impath", 1), ("_label", True), ("_label", "0"), ("_domain", None),
                                         ("_classname", None)])
def test_an_item_with_a_field_of_another_type_is_refused(name, value, dassl_datum, write, tmp_path):
    item = dassl_datum("a", 0, 0, "x")
    setattr(item, name, value)
    write(tmp_path / "odd.pkl", {"train": [item]})
    with pytest.raises(ValueError, match=naming("odd.pkl", "Datum", name)):
        read_legacy_pickle(tmp_path / "odd.pkl")


@pytest.mark.parametrize("attributes", [{"label": 0}, {"impath": "other.jpg"}, {"classname": "other"},
                                        {"__init__": None}, {"_label": 7}])
def test_a_few_shot_pickle_changes_no_class(attributes, dassl_datum, write, tmp_path):
    """A file that sets attributes of class Datum is refused, and files read later mean what they say."""
    items = [dassl_datum("a.jpg", 1, 0, "cat"), dassl_datum("b.jpg", 2, 1, "dog")]
    write(tmp_path / "good.pkl", {"train": items})
    content = (tmp_path / "good.pkl").read_bytes()
    change = setting("dassl.data.datasets.base_dataset", "Datum", **attributes)
    (tmp_path / "bad.pkl").write_bytes(spoilt(content, change))
    before = dict(vars(Datum))
    with pytest.raises(ValueError, match="bad.pkl"):
        read_legacy_pickle(tmp_path / "bad.pkl")
    assert dict(vars(Datum)) == before
    read = read_legacy_pickle(tmp_path / "good.pkl")["train"]
    assert [(item.impath, item.label, item.domain, item.classname) for item in read] == [
        ("a.jpg", 1, 0, "cat"), ("b.jpg", 2, 1, "dog")
    ]


def test_a_draw_is_what_was_checked(tmp_path):
    """A dict whose `values` the file has replaced could pass for an empty one, and hand out anything by `get`."""
    train, word, values = (pickle.dumps(text, protocol=2)[2:-1] for text in ("train", "no list", "values"))
    mapping = b"ccollections\nOrderedDict\n)R" + train + word + b"s"
    replaced = b"N}" + values + b"cbuiltins\nlist\ns\x86b"
    (tmp_path / "odd.pkl").write_bytes(b"\x80\x02" + mapping + replaced + b".")
    with pytest.raises(ValueError, match=naming("odd.pkl", "Datum")):
        read_legacy_pickle(tmp_path / "odd.pkl")

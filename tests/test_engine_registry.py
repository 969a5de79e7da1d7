"""Registries and the builders that use them."""
import pytest

from p2c.engine import (
    Registry,
    build_dataset,
    build_evaluator,
    build_trainer,
    check_availability,
    get_cfg_default,
    get_most_similar_str_to_a_from_b,
)
from p2c.engine import registry as registries


def test_a_name_is_registered_once_unless_forced():
    """Check 6."""
    registry = Registry("FOO")

    @registry.register()
    class A:
        pass

    assert registry.get("A") is A and isinstance(A, type)
    with pytest.raises(KeyError, match='An object named "A" was already registered in "FOO" registry'):
        registry.register(A)
    replacement = type("A", (), {})
    assert registry.register(replacement, force=True) is None
    assert registry.get("A") is replacement
    with pytest.raises(KeyError, match='Object name "B" does not exist in "FOO" registry'):
        registry.get("B")


def test_names_come_in_order_of_registration():
    registry = Registry("FOO")
    for name in ("b", "c", "a"):
        registry.register(type(name, (), {}))
    assert registry.registered_names() == ["b", "c", "a"]


@pytest.mark.parametrize("build, registry, key", [
    (build_trainer, "TRAINER_REGISTRY", "TRAINER.NAME"),
    (build_dataset, "DATASET_REGISTRY", "DATASET.NAME"),
    (build_evaluator, "EVALUATOR_REGISTRY", "TEST.EVALUATOR"),
])
def test_unknown_names_are_answered_with_the_choices_and_a_guess(build, registry, key, monkeypatch):
    """Check 7."""
    own = Registry("FOO")
    own.register(type("P2C", (), {}))
    own.register(type("Other", (), {}))
    monkeypatch.setattr(registries, registry, own)
    cfg = get_cfg_default()
    cfg.merge_from_list([key, "P2CC"])
    with pytest.raises(ValueError) as error:
        build(cfg)
    assert str(error.value) == (
        "The requested one is expected to belong to ['P2C', 'Other'], but got [P2CC] (do you mean [P2C]?)"
    )


def test_the_last_of_equally_similar_names_is_guessed():
    assert get_most_similar_str_to_a_from_b("ab", ["ax", "ay", "zz"]) == "ay"
    assert get_most_similar_str_to_a_from_b("ab", []) is None
    assert check_availability("ab", ["ab"]) is None

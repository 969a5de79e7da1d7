"""How much memory the machine, or the container, has."""
import pytest
import torch

from p2c.utils import memory

GIB = 1 << 30


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine(limit): 8 GiB, in a container with this limit if any."""
    def make(limit):
        sizes = {"SC_PHYS_PAGES": 8 * GIB >> 12, "SC_PAGE_SIZE": 1 << 12}
        if limit:
            (tmp_path / "memory.max").write_text(f"{limit}\n")
        monkeypatch.setattr(memory.os, "sysconf", sizes.get)
        monkeypatch.setattr(memory, "CGROUP", tmp_path)
    return make


@pytest.mark.parametrize("limit, total", [(None, 8 * GIB), ("max", 8 * GIB), (2 * GIB, 2 * GIB), (16 * GIB, 8 * GIB)])
def test_memory_is_what_the_machine_and_the_container_have(machine, limit, total):
    machine(limit)
    assert memory.total_memory(torch.device("cpu")) == total


def test_where_the_system_does_not_say_a_little_is_assumed(monkeypatch):
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.total_memory(torch.device("cpu")) == 4 * GIB

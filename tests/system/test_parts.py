import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from everest.system import compute as parts
from everest.system.compute import in_parts, is_eager_on_cpu


def rows_of_each_call(rows: int, largest: int, monkeypatch, device: str = "cpu") -> list[int]:
    """The rows that a function gets, of `rows` rows of 6 values each."""
    monkeypatch.setattr(parts, "PART", largest)
    values = torch.arange(6.0 * rows, device=device).view(rows, 2, 3)
    calls = []

    def weighted(x: Tensor, weight: Tensor) -> Tensor:
        calls.append(len(x))
        return x.sum(dim=2) * weight

    weight = torch.arange(1.0 * rows, device=device).unsqueeze(1)  # (rows, 1)
    found = in_parts(weighted, values, weight)
    if device == "cpu":
        assert torch.equal(found, values.sum(dim=2) * weight)
    assert found.shape == (rows, 2)
    return calls


@pytest.mark.parametrize(
    ("largest", "calls"), [(1, [1, 1, 1, 1, 1]), (6, [1, 1, 1, 1, 1]), (17, [2, 2, 1]), (30, [5]), (99, [5])]
)
def test_a_part_has_at_least_a_row_and_at_most_its_values(largest: int, calls: list[int], monkeypatch):
    assert rows_of_each_call(5, largest, monkeypatch) == calls


def test_other_devices_and_graphs_get_all_rows_at_once(monkeypatch):
    assert rows_of_each_call(5, 6, monkeypatch, device="meta") == [5]
    with FakeTensorMode():
        assert not is_eager_on_cpu(torch.zeros(5, 2))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert rows_of_each_call(5, 6, monkeypatch) == [5]

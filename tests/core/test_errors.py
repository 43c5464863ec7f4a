"""The pack's error prints by its plain name, and still goes from process to process."""

import copy
import pickle
import traceback

import pytest
from torch.utils.data import DataLoader, Dataset

from ipadapter_core.errors import IPAdapterError

SENTENCE = "The picture is empty: choose another."


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, place):
        raise IPAdapterError(SENTENCE)


def test_it_prints_without_the_folder_of_the_pack():
    assert traceback.format_exception_only(IPAdapterError(SENTENCE)) == [f"IPAdapterError: {SENTENCE}\n"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_class_and_instances_are_pickled(protocol):
    assert pickle.loads(pickle.dumps(IPAdapterError, protocol)) is IPAdapterError
    error = pickle.loads(pickle.dumps(IPAdapterError(SENTENCE), protocol))
    assert type(error) is IPAdapterError and error.args == (SENTENCE,)
    assert copy.deepcopy(IPAdapterError) is IPAdapterError and copy.copy(error).args == (SENTENCE,)


def test_a_worker_of_a_data_loader_hands_it_on():
    with pytest.raises(IPAdapterError) as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert f"IPAdapterError: {SENTENCE}" in str(caught.value)

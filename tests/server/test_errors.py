"""What the server answers where a node of the pack refuses its input."""

import pytest

from support.server import ServerError


def test_an_error_has_a_plain_name_and_one_sentence(rig):
    weights = {
        "weights": "one, two", "timing": "linear", "frames": 2, "start_frame": 0, "end_frame": 2, "add_starting_frames": 0,
        "add_ending_frames": 0, "method": "full batch",
    }  # fmt: skip
    prompt = {
        "1": {"class_type": "IPAdapterWeights", "inputs": weights},
        "2": {"class_type": "IPAdapterPlotWeights", "inputs": {"weights": ["1", 0]}},
    }
    with pytest.raises(ServerError) as caught:
        rig.server.wait(rig.server.queue(prompt))
    assert caught.value.details["exception_type"] == "IPAdapterError"
    sentence = "weights cannot be read: 'one, two'. Write numbers with commas between, such as 1.0, 0.5."
    assert caught.value.details["exception_message"].strip() == sentence

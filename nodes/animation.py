"""Nodes that give weights, pictures and prompts frame by frame."""

from __future__ import annotations

from dataclasses import asdict, replace

from ..ipadapter_core.weights.animation import METHODS, TIMINGS, Strategy, animate, join_weights, prompt_schedule

_STRATEGY_IN = ("WEIGHTS_STRATEGY", {"tooltip": "The settings of an IPAdapter Weights node, from its weights_strategy output."})


class IPAdapterWeights:
    DESCRIPTION = (
        "Weights that change from frame to frame, for the batch nodes and AnimateDiff, and the pictures that go with them: "
        "fade one reference in or out, or fade from picture to picture."
    )
    FUNCTION = "weights"
    RETURN_TYPES = ("FLOAT", "FLOAT", "INT", "IMAGE", "IMAGE", "WEIGHTS_STRATEGY")
    RETURN_NAMES = ("weights", "weights_invert", "total_frames", "image_1", "image_2", "weights_strategy")
    OUTPUT_TOOLTIPS = (
        "One weight for each frame. Connect it to the weight of an IPAdapter Batch node.",
        "The weights from last to first: what goes with image_2.",
        "How many frames there are. Connect it to the batch size of the latent.",
        "The picture of each frame.",
        "The picture that each frame fades to or from, for shift and alternate batches.",
        "These settings, for IPAdapter Weights From Strategy and Prompt Schedule From Weights Strategy.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        def frames(default: int, tooltip: str):
            return ("INT", {"default": default, "min": 0, "max": 9999, "step": 1, "tooltip": tooltip})

        return {
            "required": {
                "weights": (
                    "STRING",
                    {
                        "default": "1.0, 0.0",
                        "multiline": True,
                        "tooltip": "Numbers with commas or new lines between them. With timing 'custom' one for each frame; "
                        "else the first and the last are where the curve starts and ends.",
                    },
                ),
                "timing": (
                    list(TIMINGS),
                    {
                        "default": "linear",
                        "tooltip": "How the weight goes from the first number to the last. 'custom' takes the numbers as they are; "
                        "'random' draws between the two.",
                    },
                ),
                "frames": frames(0, "How many frames a picture lasts (at least 2). With timing 'custom' the numbers decide."),
                "start_frame": frames(0, "The curve starts at this frame; before it the first number holds."),
                "end_frame": frames(9999, "The curve ends at this frame; after it the last number holds. Beyond the last frame: no limit."),
                "add_starting_frames": frames(0, "Extra frames at the start, with the first weight and the first picture."),
                "add_ending_frames": frames(0, "Extra frames at the end, with the last weight and the last picture."),
                "method": (
                    list(METHODS),
                    {
                        "default": "full batch",
                        "tooltip": "With several pictures: 'full batch' runs the curve once for each; 'shift batches' fades each picture "
                        "into the next; 'alternate batches' does so with every picture staying in the same output.",
                    },
                ),
            },
            "optional": {
                "image": ("IMAGE", {"tooltip": "The reference pictures, in order. They are repeated to one for each frame."}),
            },
        }

    def weights(
        self,
        weights="",
        timing="custom",
        frames=0,
        start_frame=0,
        end_frame=9999,
        add_starting_frames=0,
        add_ending_frames=0,
        method="full batch",
        weights_strategy=None,
        image=None,
    ):
        if weights_strategy is None:
            strategy = Strategy(weights, timing, frames, start_frame, end_frame, add_starting_frames, add_ending_frames, method)
        else:
            strategy = Strategy.from_wire(weights_strategy)
        shown = animate(strategy, image)
        if image is not None:
            strategy = replace(strategy, frame_count=image.shape[0])
        return shown.weights, shown.weights[::-1], len(shown.weights), shown.image_1, shown.image_2, asdict(strategy)


class IPAdapterWeightsFromStrategy(IPAdapterWeights):
    DESCRIPTION = "Weights and pictures by the settings of an IPAdapter Weights node, for other pictures: the two then run in step."

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"weights_strategy": _STRATEGY_IN},
            "optional": {
                "image": ("IMAGE", {"tooltip": "The reference pictures, in order; usually as many as the IPAdapter Weights node has."}),
            },
        }


class IPAdapterPromptScheduleFromWeightsStrategy:
    DESCRIPTION = "A prompt for each picture of an IPAdapter Weights node, written as the schedule that batch prompt nodes read."
    FUNCTION = "prompt_schedule"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("prompt_schedule",)
    OUTPUT_TOOLTIPS = ('Lines such as "0": "a cat", with the frame each prompt starts at. Connect it to a batch prompt schedule node.',)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "weights_strategy": _STRATEGY_IN,
                "prompt": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "One line for each picture; empty lines are left out. The last line repeats when there are too few.",
                    },
                ),
            }
        }

    def prompt_schedule(self, weights_strategy, prompt=""):
        return (prompt_schedule(Strategy.from_wire(weights_strategy), prompt),)


class IPAdapterCombineWeights:
    DESCRIPTION = "Puts two runs of weights one after the other, for longer animations."
    FUNCTION = "combine"
    RETURN_TYPES = ("FLOAT", "INT")
    RETURN_NAMES = ("weights", "count")
    OUTPUT_TOOLTIPS = ("All weights, one for each frame.", "How many weights there are.")

    @classmethod
    def INPUT_TYPES(cls):
        def weights(tooltip: str):
            return ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": tooltip})

        return {
            "required": {
                "weights_1": weights("The weights that come first, or one number for a single frame."),
                "weights_2": weights("The weights that follow, or one number for a single frame."),
            }
        }

    def combine(self, weights_1, weights_2):
        weights = join_weights(weights_1, weights_2)
        return weights, len(weights)


NODE_CLASS_MAPPINGS = {
    "IPAdapterWeights": IPAdapterWeights,
    "IPAdapterWeightsFromStrategy": IPAdapterWeightsFromStrategy,
    "IPAdapterPromptScheduleFromWeightsStrategy": IPAdapterPromptScheduleFromWeightsStrategy,
    "IPAdapterCombineWeights": IPAdapterCombineWeights,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "IPAdapterWeights": "IPAdapter Weights",
    "IPAdapterWeightsFromStrategy": "IPAdapter Weights From Strategy",
    "IPAdapterPromptScheduleFromWeightsStrategy": "Prompt Schedule From Weights Strategy",
    "IPAdapterCombineWeights": "IPAdapter Combine Weights",
}

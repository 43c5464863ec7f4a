"""The nodes, a file for each topic."""

from . import (
    animation,
    apply,
    attention_maps,
    catalog,
    embeds,
    example_picture,
    faceid,
    faces,
    image_prompt,
    image_prompt_loader,
    images,
    legacy,
    likeness,
    loaders,
    look,
    regional,
    tiled,
)  # fmt: skip

_TOPICS = (
    image_prompt_loader, image_prompt, attention_maps, likeness, apply, embeds, regional, tiled, faceid, faces, animation, images,
    example_picture, look, loaders, legacy,
)  # fmt: skip

NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = catalog.in_order(
    {node_id: cls for topic in _TOPICS for node_id, cls in topic.NODE_CLASS_MAPPINGS.items()},
    {node_id: name for topic in _TOPICS for node_id, name in topic.NODE_DISPLAY_NAME_MAPPINGS.items()},
)

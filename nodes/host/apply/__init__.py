"""From a node's inputs to an application: features, sides, settings, projection."""

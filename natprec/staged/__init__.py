"""A model as stages that are run one at a time: prefix, blocks, suffix."""

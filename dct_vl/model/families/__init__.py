"""One folder a model family: config reader, tensor names, tower, Megatron module."""

"""A synthetic dataset in the Cambrian layout, whose answers can be seen in its images.

``write_drawn_dataset(folder, num_entries=…, seed=…)`` makes ``cambrian737k.json`` and one tar per
source, with the file formats and the defects that a real collection has, so that the whole
pipeline can be run, trained and scored where nothing can be downloaded.
"""

from data_prep.drawn.dataset import DrawnSummary, write_drawn_dataset

__all__ = ["DrawnSummary", "write_drawn_dataset"]

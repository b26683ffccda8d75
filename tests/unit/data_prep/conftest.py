"""Property tests here write files and start processes: their times say nothing of a failure."""

from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

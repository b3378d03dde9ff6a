"""The live loop: sources of frames, the pipeline over them, and where its results go."""

from edgeattn.camera.pipeline import Pipeline, Result
from edgeattn.camera.source import Camera, Folder, Frame, Source, Video, open_source

__all__ = ["Camera", "Folder", "Frame", "Pipeline", "Result", "Source", "Video", "open_source"]
